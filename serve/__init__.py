"""tabpfn-serve: a TabPFN inference server with dynamic batching."""

from importlib.metadata import version

__version__ = version("tabpfn-serve")
