"""Where the value of a setting comes from: the command line, else the environment, else the `--config` file, else its
default.

Variables of the environment, for containers:
- `TABPFN_SERVE_<GROUP>_<NAME>` is a setting, such as `TABPFN_SERVE_ENGINE_DEVICE`; the list of models is JSON;
- `TABPFN_SERVE_<OPTION>` is an option of a command, such as `TABPFN_SERVE_PORT`;
- `SAGEMAKER_BIND_TO_PORT`, which SageMaker sets, is the port of `serve`.

An empty variable counts as not set, so that a deployment can take back a value of an image. An unknown variable with
the prefix is an error, because it is probably a misspelt setting.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from serve.settings.schema import ServerSettings, every_setting
from serve.settings.words import InvalidSettings, did_you_mean, in_words, unknown_key

PREFIX = "TABPFN_SERVE_"

# Kubernetes sets variables of these names in the containers of a namespace that has a Service named `tabpfn-serve`.
_OF_KUBERNETES = re.compile(rf"{PREFIX}(SERVICE_(HOST|PORT(_.+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


class UpOptions(BaseSettings, ServerSettings):
    """What `tabpfn-serve up` is given: its own options, and every setting of the replica."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="_",
        env_nested_max_split=1,  # ENGINE_KV_CACHE_DIR is `engine.kv_cache_dir`
        env_ignore_empty=True,
        enable_decoding=False,  # the schema reads JSON, and so names the setting where it cannot
    )

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 listens on every IPv4 interface.")
    port: int = Field(8080, ge=0, le=65_535, description="Port to listen on; 0 takes a free one.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "warning", description="Least severe message that is written to stderr."
    )
    config: Path | None = Field(
        None, description="YAML file with settings by group: serve_config.yaml, or only the `args` in it."
    )

    @property
    def settings(self) -> ServerSettings:
        """The replica's settings, without the options of the command."""
        return ServerSettings(**{group: getattr(self, group) for group in ServerSettings.model_fields})

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Pydantic asks for the sources, the strongest first."""
        environment = EnvSettingsSource(settings_cls)
        environment.env_vars = cls._variables(dict(environment.env_vars))
        config = {**environment(), **init_settings()}.get("config")
        file = {} if config is None else read_config(Path(config))
        return init_settings, environment, InitSettingsSource(settings_cls, file)

    @classmethod
    def _variables(cls, given: dict[str, str | None]) -> dict[str, str | None]:
        """The environment, with names in lower case, less a port that is the address of a Service of Kubernetes."""
        port = PREFIX.lower() + "port"
        if "://" in (given.get(port) or ""):  # TABPFN_SERVE_PORT=tcp://10.0.0.7:8080
            del given[port]
        return given


class ServeOptions(UpOptions):
    """What `tabpfn-serve serve` is given."""

    num_replicas: int = Field(
        1, ge=1, description="Number of replicas. Each loads every model, and on GPUs each takes one of its own."
    )
    dashboard: bool = Field(
        False, description="Start Ray's dashboard, on http://127.0.0.1:8265, or the next free port."
    )

    @classmethod
    def _variables(cls, given: dict[str, str | None]) -> dict[str, str | None]:
        given = super()._variables(given)
        if port := given.get("sagemaker_bind_to_port"):
            given[PREFIX.lower() + "port"] = port
        return given


Options = TypeVar("Options", bound=UpOptions)


def own_options(options: type[UpOptions]) -> Iterator[tuple[str, FieldInfo]]:
    """(name, field) of each option that a command has beside the settings."""
    fields = options.model_fields.items()
    return ((name, field) for name, field in fields if name not in ServerSettings.model_fields)


def load(options: type[Options], given: Mapping[str, Any]) -> Options:
    """Read and check everything that a command is given.

    Args:
        options: the class of the command.
        given: the command line: options by name, settings as `{group: {name: value}}`. Values may be text.

    Raises:
        InvalidSettings: a value, a name or the file is at fault. The message is one line that names the place.
    """
    _refuse_unknown_variables()
    try:
        return options(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise InvalidSettings(in_words(first) + _origin(first["loc"], given)) from None


def read_settings(values: Mapping[str, Any]) -> ServerSettings:
    """The settings that `values` holds by group, such as the `args` of a Ray Serve application; the rest by default.

    Raises:
        InvalidSettings: a value or a name is at fault. The message is one line that names the place.
    """
    try:
        return ServerSettings.model_validate(values)
    except ValidationError as error:
        raise InvalidSettings(in_words(error.errors()[0])) from None


def flag(name: str) -> str:
    """The option of the command line that gives a setting."""
    return "--model" if name == "models" else "--" + name.replace("_", "-")


def variable(*place: str) -> str:
    """The variable of the environment that gives an option, or a setting by group and name."""
    return PREFIX + "_".join(place).upper()


def known_variables() -> list[str]:
    """Every variable that any command reads."""
    options = [variable(name) for name, _ in own_options(ServeOptions)]
    return options + [variable(group, name) for group, name, _ in every_setting()]


def read_config(path: Path) -> dict[str, Any]:
    """Read the settings in a file: the `args` of a Ray Serve configuration's first application, or the whole file.

    Raises:
        InvalidSettings: the file cannot be read, or does not hold settings by group.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        args = content["applications"][0].get("args", {}) if "applications" in content else content
        groups = {group: dict(values or {}) for group, values in args.items() if group in ServerSettings.model_fields}
    except OSError as error:
        raise InvalidSettings(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        fault = " ".join(str(error).split()).replace(' in "<unicode string>",', " at")
        raise InvalidSettings(f"{path} is not YAML in UTF-8: {fault}") from None
    except (TypeError, ValueError, AttributeError, LookupError):
        raise InvalidSettings(f"{path} does not hold settings by group, such as `engine: {{device: cpu}}`") from None
    if unknown := [key for key in args if key not in groups]:
        raise InvalidSettings(f"{unknown_key(unknown[:1])} (given in {path})")
    return groups


def _refuse_unknown_variables() -> None:
    known = known_variables()
    for name in sorted(os.environ):
        if name.startswith(PREFIX) and name not in known and not _OF_KUBERNETES.fullmatch(name):
            raise InvalidSettings(
                f"{name} in the environment is no setting and no option (docs/settings.md){did_you_mean(name, known)}"
            )


def _origin(place: tuple[int | str, ...], given: Mapping[str, Any]) -> str:
    """Say which option, variable or file gave the value at a place; nothing where it is plain, or where several did."""
    names = [str(name) for name in place[:2]]
    is_option = names[0] not in ServerSettings.model_fields
    if is_option != (len(names) == 1):
        return ""
    if is_option and names[0] in given:
        return ""
    if names[-1] in given.get(names[0], {}):
        return f" (given by {flag(names[-1])})"
    if os.environ.get(variable(*names)):
        return f" (given by {variable(*names)})"
    config = given.get("config") or os.environ.get(variable("config"))
    return f" (given in {config})" if config else ""
