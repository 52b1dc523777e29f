"""Every setting of a replica, and where its value comes from.

`schema.py` has the classes (`api_group.py` one of them), `model_source.py` the entries of `store.models`, `sources.py`
reads command line, environment and file, `words.py` explains settings and faults, `page.py` writes docs/settings.md.
What is always true:
- settings are frozen and complete once they are read; paths in them are absolute;
- only `sources.py` reads the environment and files, for the command line; the layers below get settings as arguments;
- importing this folder imports neither torch nor ray, so that a fault is reported within a second.
"""

from serve.settings.api_group import ApiSettings
from serve.settings.schema import (
    BatchingSettings,
    EngineSettings,
    MetricsSettings,
    ServerSettings,
    StoreSettings,
    every_setting,
)
from serve.settings.words import InvalidSettings

__all__ = [
    "ApiSettings",
    "BatchingSettings",
    "EngineSettings",
    "InvalidSettings",
    "MetricsSettings",
    "ServerSettings",
    "StoreSettings",
    "every_setting",
]
