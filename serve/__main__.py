"""`python -m serve` is `tabpfn-serve`."""

import sys

from serve.cli.main import main

sys.exit(main())
