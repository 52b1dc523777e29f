"""Every setting of a replica, and where its value comes from: a file, the environment, the command line."""

from serve.settings.schema import (
    ApiSettings,
    BatchingSettings,
    EngineSettings,
    MetricsSettings,
    ServerSettings,
    StoreSettings,
    every_setting,
)

__all__ = [
    "ApiSettings",
    "BatchingSettings",
    "EngineSettings",
    "MetricsSettings",
    "ServerSettings",
    "StoreSettings",
    "every_setting",
]
