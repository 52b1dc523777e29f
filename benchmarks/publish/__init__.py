"""Publishes runs: `python -m benchmarks.publish` (`make results`) copies chosen JSON, redraws plots and writes pages.

Measuring and publishing are apart: every benchmark writes into `benchmarks/out/`, which git ignores, and only this
command writes into `benchmarks/results/`, `benchmarks/RESULTS.md` and the table of results in README.md.

What is always true: every figure and plot of these pages comes from the JSON in `benchmarks/results/`, and a test fails
where a page differs from its JSON. `catalogue.py` lists the published runs; `engine.py`, `load.py`, `peers.py`,
`mixed.py`, `overhead.py`, `mlperf.py` and `simulation.py` each turn one kind of run into its section.
"""
