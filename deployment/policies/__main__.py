"""`python -m deployment.policies FILE ...` prints each violation on a line of its own; exit code 1 if there is one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from deployment.policies import check


def main(paths: list[str]) -> int:
    """Check template files; print `file: resource: violation` to stderr. Returns the exit code."""
    found = [(path, violation) for path in paths for violation in check(json.loads(Path(path).read_text()))]
    for path, violation in found:
        print(f"{path}: {violation}", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
