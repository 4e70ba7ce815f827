"""What the process that forks every trial has imported: torch, mlflow and all that a training needs, 7 s of imports.

Nothing here opens a store or runs a network: a fork takes over neither connections nor threads.
"""

from importlib import import_module

from tracking.connection import import_mlflow

import_mlflow()  # before others do, with its environment: no telemetry's thread
for name in (
    *("matplotlib.pyplot", "mlflow.store.tracking.sqlalchemy_store", "supervision"),
    *("evaluating.scoring", "live_run", "prepare", "provenance", "report"),
    *("tracking.pulse", "tracking.run", "tracking.sender"),
):
    import_module(name)
