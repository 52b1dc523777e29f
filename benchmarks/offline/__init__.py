"""The engine alone, in this process, without server or queue: `python -m benchmarks.offline.engine`.

`sides.py` builds the two sides of a comparison, `cells.py` times them against each other with `pairs.py`, `engine.py`
runs the grid. `architectures.py` makes full-size networks with random weights, `memory.py` reads peaks of memory,
`plot.py` draws a run.

`python -m benchmarks.offline.kernels` counts the kernels of a forward pass on the tests' pretend GPU (`launches.py`),
and estimates their times on GPUs (`gpus.py`); `kernels_plot.py` draws it. `python -m benchmarks.offline.probe` looks at
the engine on a real GPU.

What is always true: both sides hold the same context and checkpoint, get the same encoded rows, and run in pairs in one
process. Keys named `compiled` belong to the server's engine, keys named `tabpfn` to the tabpfn package.
"""
