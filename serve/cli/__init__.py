"""The command line `tabpfn-serve`: `main.py` dispatches, and each group of commands has a file.

A command's file has `add_parser(commands)` and `run(options)`. What is always true:
- exit code 0 after a stop that was asked for, 1 after a failed start, 2 for settings or a command line at fault;
- a fault is one line on stderr, never a traceback;
- settings, the port and the model repository are checked before torch or Ray is imported.
"""
