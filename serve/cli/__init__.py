"""The command line `tabpfn-serve`, one file per group of commands."""
