"""Runs models on one device, with torch and tabpfn. Import the modules by name.

`engine.py` is the Engine: it fits contexts (`context_fit.py`, `estimators/`) and answers batches (`compiled.py`, else
tabpfn). `worker/` runs it in a process of its own.

What is always true:
- nothing here knows queues or HTTP;
- `row_encoder.py`, `fake.py`, `worker/client.py` and what they import need neither torch nor tabpfn, so the replica's
  process starts without them;
- `tabpfn_estimators.py` shuts out the internet before tabpfn is imported.
"""
