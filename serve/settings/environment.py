"""What `tabpfn-serve` is told by environment variables, as containers are: each begins with `TABPFN_SERVE_`.

- `TABPFN_SERVE_<OWNER>_<NAME>` is a setting: `TABPFN_SERVE_ENGINE_DEVICE`, and, as JSON, `TABPFN_SERVE_STORE_MODELS`;
- `TABPFN_SERVE_<OPTION>` is an option of a command: `TABPFN_SERVE_PORT`;
- `SAGEMAKER_BIND_TO_PORT` is the port of `serve` where SageMaker says one.

An empty one is as if it was not there, so that a deployment can take back what an image sets. An unknown one is an
error: a misspelt setting must not be overlooked.
"""

from __future__ import annotations

import json
import re
import typing
from collections.abc import Mapping
from typing import Any

from serve.settings import every_setting

PREFIX = "TABPFN_SERVE_"

_OF_BOTH = ("host", "port", "log-level", "config")
_OPTIONS = {"up": _OF_BOTH, "serve": (*_OF_BOTH, "num-replicas")}

# Kubernetes tells the containers of a namespace about a Service named `tabpfn-serve` by variables of these names.
_OF_KUBERNETES = re.compile(rf"{PREFIX}(SERVICE_(HOST|PORT(_.+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)")


def options(environ: Mapping[str, str], command: str) -> dict[str, str]:
    """Option of the command, without its dashes -> value. What is not given is not in it."""
    given = {name: environ.get(_variable(name), "") for name in _OPTIONS.get(command, ())}
    if command == "serve" and (port := environ.get("SAGEMAKER_BIND_TO_PORT")):
        given["port"] = port
    return {name: value for name, value in given.items() if value and not _is_address(name, value)}


def settings(environ: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    """(owner, name) -> value, as text or as what its JSON holds; what is not given is not in it.

    Raises:
        ValueError: a variable with our prefix is of no setting, or a list is not JSON.
    """
    fields = {_variable(f"{owner}_{name}"): (owner, name, field) for owner, name, field in every_setting()}
    known = fields.keys() | {_variable(name) for names in _OPTIONS.values() for name in names}
    for variable in environ:
        if variable.startswith(PREFIX) and variable not in known and not _OF_KUBERNETES.fullmatch(variable):
            raise ValueError(f"{variable} in the environment is no setting and no option (docs/settings.md)")
    found = {}
    for variable, (owner, name, field) in fields.items():
        if text := environ.get(variable):
            is_list = typing.get_origin(field.annotation) is tuple
            found[owner, name] = _parsed(variable, text) if is_list else text
    return found


def _variable(name: str) -> str:
    return PREFIX + name.replace("-", "_").upper()


def _is_address(option: str, value: str) -> bool:
    """Kubernetes' `TABPFN_SERVE_PORT=tcp://10.0.0.7:8080`, which is no port to listen on."""
    return option == "port" and "://" in value


def _parsed(variable: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ValueError(f"{variable} in the environment is not JSON: {error}") from None
