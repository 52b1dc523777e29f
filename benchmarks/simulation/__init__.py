"""Batching policies simulated under a virtual clock: `python -m benchmarks.simulation`.

`server.py` is the part that all simulated servers share. `tabpfn_serve.py` drives the real policy of `serve/batching`;
`pipelined.py` drives it with two batches in flight, and is in no published run. `ray_serve.py`, `triton.py`,
`bentoml.py` and `unbatched.py` are the policies of other servers, written from their sources.
`cell.py` runs one policy under one load, `experiments.py` lists all loads, `tuning.py` finds each peer's best settings,
`run.py` does a whole run.

What is always true: nothing waits and nothing is computed. A batch takes as long as the cost model of the device says,
and the clock jumps to its end. Every policy meets the same arrivals, and a run with the same seed gives the same
numbers, to the last digit.
"""
