"""`python -m serve` is `tabpfn-serve`."""

import sys

from serve.cli import main

sys.exit(main())
