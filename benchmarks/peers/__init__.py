"""The same model behind other servers, compared in one run: `python -m benchmarks.peers`.

Each peer is installed in an environment of its own (`environments`), started and stopped (`process`, `systems`),
checked and measured in rounds (`contender`, `rounds`). `servers` holds the peers' own programs.

What is always true: every system has the same model, one process that holds it, and the same number of torch threads;
every system is asked the same requests, and its answers are checked before and under load; a system that has no turn is
frozen; no process is left behind.
"""
