"""One virtual environment per peer, under `.venv/peers/`; `python -m benchmarks.peers.environments` makes them all.

An environment sees the project's own packages (torch, tabpfn, numpy), so that these are the same for every system. The
peer's own packages are installed on top, by the pins in `requirements/NAME.txt`. The folder is git-ignored; `make
clean` removes it.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks.machine import ROOT
from benchmarks.online.errors import StartFailed

FOLDER = ROOT / ".venv" / "peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))

_PIP_S = 600
_STAMP = "installed"


def python_of(name: str) -> Path:
    """The environment's interpreter."""
    return FOLDER / name / "bin" / "python"


def install(name: str, folder: Path = FOLDER) -> Path:
    """Make the environment, unless these very pins are installed. Returns its interpreter.

    Raises StartFailed.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    place = folder / name
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    stamp = place / _STAMP
    python = place / "bin" / "python"
    if stamp.exists() and stamp.read_text() == digest:
        return python
    venv.create(place, clear=True, with_pip=False, symlinks=True)  # it sees the project's pip
    packages = Path(sysconfig.get_path("purelib"))
    own = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "project.pth").write_text(f"{packages}\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise StartFailed(f"pip took longer than {_PIP_S} s to install {requirements.name}") from error
    if done.returncode != 0:
        said = done.stderr.strip().replace("\n", " | ")[-500:]
        raise StartFailed(f"pip could not install {requirements.name}: {said}")
    stamp.write_text(digest)
    return python


def pins(name: str) -> dict[str, str]:
    """The version of each package that the requirements file pins."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    pinned = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {package: version for package, _, version in pinned}


def main() -> None:
    """Make every environment."""
    for name in NAMES:
        print(f"{name}: {install(name)}")


if __name__ == "__main__":
    main()
