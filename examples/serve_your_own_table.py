"""From a table to a served model. Run it in any folder, then start the server on the folder that it wrote:

    python examples/serve_your_own_table.py
    tabpfn-serve up --model-repository models

The table is a pandas DataFrame: 178 wines, 13 measurements and the cultivar of each. Put your own in its place.
"""

from pathlib import Path

import pyarrow as pa
from sklearn.datasets import load_wine

from serve.store import write_model
from serve.store.folder import EMBEDDED

frame = load_wine(as_frame=True).frame
inputs = frame.drop(columns="target")
folder = write_model(
    Path("models"),
    pa.Table.from_pandas(frame, preserve_index=False),
    EMBEDDED / "checkpoints" / "demo-v3.5.safetensors",
    {"name": "tabpfn-serve-demo-v3.5", "licence": "Apache-2.0"},
    name="wine", version="1", task="classification", target="target",
    columns=[{"name": name, "kind": "number"} for name in inputs.columns],
    example=inputs.iloc[0].to_dict(),
)  # fmt: skip
print(f"wrote {folder}; now run: tabpfn-serve up --model-repository models")
