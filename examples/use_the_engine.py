"""The engine as a library: no server, no Ray. Run it without arguments:

python examples/use_the_engine.py
"""

from serve.core import Batch, QueryTable
from serve.engine.engine import TabPFNEngine
from serve.settings import EngineSettings, StoreSettings
from serve.store import FolderStore

model = FolderStore(StoreSettings()).load("fraud")  # the demo model; StoreSettings(model_repository=...) for yours
engine = TabPFNEngine(EngineSettings())
fitted = engine.fit(model)
rows = fitted.encode(QueryTable.from_records([model.example, {**model.example, "amount": 5.0}]))
print(fitted.classes, engine.predict(Batch(fitted, rows)))  # probabilities: float64 [2 rows, 2 classes]
