"""Rules for the Dockerfiles that hadolint does not have. Each is a function from a parsed file to its findings."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field


@dataclass
class Stage:
    """One build stage: its base, its name and its instructions as (keyword, arguments)."""

    base: str
    name: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        """The arguments of every instruction of a keyword, in order."""
        return [arguments for found, arguments in self.instructions if found == keyword]


class Dockerfile:
    """A parsed Dockerfile."""

    def __init__(self, text: str) -> None:
        joined = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.M))
        self.stages: list[Stage] = []
        for line in filter(str.strip, joined.splitlines()):
            keyword, _, arguments = line.strip().partition(" ")
            if keyword == "FROM":
                base, _, name = arguments.partition(" AS ")
                self.stages.append(Stage(base, name.strip()))
            elif self.stages:  # an ARG may stand before the first FROM
                self.stages[-1].instructions.append((keyword, arguments.strip()))

    def target(self, name: str) -> Stage:
        """The stage of that name, with the instructions that it inherits."""
        own = next(stage for stage in self.stages if stage.name == name)
        if own.base not in {stage.name for stage in self.stages}:
            return own
        inherited = self.target(own.base)
        return Stage(inherited.base, name, inherited.instructions + own.instructions)

    @property
    def targets(self) -> list[Stage]:
        """The stages that are built to run: the last one, and `sagemaker`."""
        names = {self.stages[-1].name} | ({"sagemaker"} & {stage.name for stage in self.stages})
        return [self.target(name) for name in sorted(names)]


Findings = Iterator[str]


def base_images_have_a_release(file: Dockerfile) -> Findings:
    for stage in file.stages:
        if stage.base not in {other.name for other in file.stages} and not re.search(r":(?!latest)[\w.-]+", stage.base):
            yield f"{stage.base} names no release"


def only_sagemaker_runs_as_root(file: Dockerfile) -> Findings:
    for target in file.targets:
        users = target.all("USER")
        user = users[-1] if users else "0"
        if target.name == "sagemaker":
            if user.split(":")[0] != "0":
                yield "SageMaker expects root"
        elif not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
            # Kubernetes can verify that a user is not root only if it is a number.
            yield f"{target.name} runs as {user}"


def programs_are_in_exec_form(file: Dockerfile) -> Findings:
    """In shell form the shell would receive the signals, and it does not forward them."""
    for target in file.targets:
        commands = [c for k in ("ENTRYPOINT", "CMD") for c in target.all(k)]
        commands += [c.partition("CMD ")[2] for c in target.all("HEALTHCHECK")]
        for command in commands:
            try:
                if not isinstance(json.loads(command), list):
                    raise ValueError
            except ValueError:
                yield f"not in exec form: {command}"


def the_argument_is_serve(file: Dockerfile) -> Findings:
    """SageMaker runs `docker run IMAGE serve`, so `serve` is the argument; the entry point is an init process."""
    for target in file.targets:
        if target.all("CMD")[-1:] != ['["serve"]']:
            yield "CMD is not serve"
        if not any("tini" in entry and entry.endswith('"tabpfn-serve"]') for entry in target.all("ENTRYPOINT")[-1:]):
            yield "ENTRYPOINT is not the init and tabpfn-serve"


def health_is_readiness(file: Dockerfile) -> Findings:
    for target in file.targets:
        if not any("/v2/health/ready" in check for check in target.all("HEALTHCHECK")[-1:]):
            yield f"{target.name} has no HEALTHCHECK that asks for readiness"


def stops_by_sigterm(file: Dockerfile) -> Findings:
    for target in file.targets:
        if target.all("STOPSIGNAL")[-1:] != ["SIGTERM"]:
            yield f"{target.name} has no STOPSIGNAL SIGTERM"


def has_a_lame_duck(file: Dockerfile) -> Findings:
    """Readiness fails for some seconds before the server stops serving; `docker stop` sends SIGKILL after 10 s."""
    for target in file.targets:
        given = re.findall(r"TABPFN_SERVE_API_LAME_DUCK_S=(\d+)", " ".join(target.all("ENV")))
        lame_duck_s = int(given[-1]) if given else None
        if target.name == "sagemaker":
            if lame_duck_s != 0:
                yield "SageMaker allows 30 s for the whole stop, which leaves no time for a lame duck"
        elif lame_duck_s is None or not 0 < lame_duck_s <= 5:
            yield f"{target.name} has a lame duck of {lame_duck_s} s, not of 1 to 5 s"


def listens_on_8080_of_all_addresses(file: Dockerfile) -> Findings:
    for target in file.targets:
        environment = " ".join(target.all("ENV"))
        if target.all("EXPOSE") != ["8080"] or "TABPFN_SERVE_PORT=8080" not in environment:
            yield f"{target.name} is not on 8080"
        if "TABPFN_SERVE_HOST=0.0.0.0" not in environment:
            yield f"{target.name} listens on its own loopback only"


def has_writable_places(file: Dockerfile) -> Findings:
    for target in file.targets:
        volumes = [place for volume in target.all("VOLUME") for place in json.loads(volume)]
        if not {"/tmp", "/var/cache/tabpfn-serve"} <= set(volumes):
            yield f"{target.name} cannot run with a read-only root"
        if "HOME=/tmp" not in " ".join(target.all("ENV")):
            yield f"{target.name} has no writable HOME for Ray's token"


def contains_no_secret(file: Dockerfile) -> Findings:
    for stage in file.stages:
        for keyword in ("ARG", "ENV"):
            for arguments in stage.all(keyword):
                yield from (
                    f"{keyword} {name}: everyone can read it in the image"
                    for name in re.findall(r"(\w+)=?", arguments)
                    if re.search(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|ACCESS_KEY|INDEX_URL", name)
                )
        for copied in stage.all("COPY") + stage.all("ADD"):
            if re.search(r"\.pem|\.key|\.aws|pip\.conf|\.netrc|\.env\b|(^|\s)\.(\s|$)", copied.rpartition(" ")[0]):
                yield f"COPY {copied}"
        if stage.all("ADD"):
            yield "ADD can fetch and unpack; use COPY"


def installs_exact_versions(file: Dockerfile) -> Findings:
    for stage in file.stages:
        for run in stage.all("RUN"):
            for install in re.findall(r"pip install [^&|;]*", run):
                exact = "--constraint constraints.txt" in install or "--no-deps" in install
                if not exact:
                    yield f"installs versions that are not exact: {install}"


def contains_no_build_tools(file: Dockerfile) -> Findings:
    for target in file.targets:
        for run in target.all("RUN"):
            for tool in re.findall(
                r"python3-pip|python3-venv|python3-dev|build-essential|\bgcc\b|\bgit\b|\bcurl\b", run
            ):
                yield f"{target.name} contains {tool}"
            if "apt-get install" in run and "rm -rf /var/lib/apt/lists" not in run:
                yield f"{target.name} contains apt's lists"


def ships_code_last(file: Dockerfile) -> Findings:
    for target in file.targets:
        copies = target.all("COPY")
        if "--from=code" not in copies[-1] or any("serve" in copy.split() for copy in copies):
            yield f"{target.name}: a change of code would ship more than the code"


RULES: tuple[Callable[[Dockerfile], Findings], ...] = (
    base_images_have_a_release,
    only_sagemaker_runs_as_root,
    programs_are_in_exec_form,
    the_argument_is_serve,
    health_is_readiness,
    stops_by_sigterm,
    has_a_lame_duck,
    listens_on_8080_of_all_addresses,
    has_writable_places,
    contains_no_secret,
    installs_exact_versions,
    contains_no_build_tools,
    ships_code_last,
)
