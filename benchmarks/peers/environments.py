"""One environment per peer, under `.venv/peers/` (git-ignored, and `make clean` removes it with the rest).

It sees the project's own packages (torch, tabpfn, numpy: the same for every system), and its own pins lie on top, from
`requirements/NAME.txt`. `python -m benchmarks.peers.environments` makes them all.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks.machine import ROOT

FOLDER = ROOT / ".venv" / "peers"
REQUIREMENTS = Path(__file__).parent / "requirements"
NAMES = tuple(sorted(path.stem for path in REQUIREMENTS.glob("*.txt")))

_PIP_S = 600
_STAMP = "installed"


def python_of(name: str) -> Path:
    """The environment's interpreter."""
    return FOLDER / name / "bin" / "python"


def install(name: str, folder: Path = FOLDER) -> Path:
    """Make the environment, unless these very pins are installed already; its interpreter. Raises RuntimeError."""
    requirements = REQUIREMENTS / f"{name}.txt"
    place = folder / name
    digest = hashlib.sha256(requirements.read_bytes() + sys.version.encode()).hexdigest()
    stamp = place / _STAMP
    python = place / "bin" / "python"
    if stamp.exists() and stamp.read_text() == digest:
        return python
    venv.create(place, clear=True, with_pip=False, symlinks=True)  # pip is the project's own, seen like the rest
    packages = Path(sysconfig.get_path("purelib"))
    own = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (own / "project.pth").write_text(f"{packages}\n")
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_S, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"pip could not install {requirements.name}: {done.stderr.strip()[-500:]}")
    stamp.write_text(digest)
    return python


def pins(name: str) -> dict[str, str]:
    """Package to version, as the requirements file has them."""
    lines = (REQUIREMENTS / f"{name}.txt").read_text().splitlines()
    pinned = (line.partition("==") for line in lines if line and not line.startswith("#"))
    return {package: version for package, _, version in pinned}


def main() -> None:
    for name in NAMES:
        print(f"{name}: {install(name)}")


if __name__ == "__main__":
    main()
