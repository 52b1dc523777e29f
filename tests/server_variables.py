"""The environment variables that the server reads for its settings. An unknown one makes it refuse to start."""

from pydantic import BaseModel

from serve.settings import ServerSettings


def server_variables() -> set[str]:
    """`TABPFN_SERVE_<GROUP>_<NAME>` of every setting, and the two of the address."""
    names = {"TABPFN_SERVE_HOST", "TABPFN_SERVE_PORT"}
    for group_name, group in ServerSettings.model_fields.items():
        assert isinstance(group.annotation, type)
        assert issubclass(group.annotation, BaseModel)
        names |= {f"TABPFN_SERVE_{group_name}_{name}".upper() for name in group.annotation.model_fields}
    return names
