"""The tracking store: a run journal on disk, its delivery to MLflow, and what is read back."""
