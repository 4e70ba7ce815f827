"""What can go wrong between a script and the tracking store, each with the exit code of the script."""


class StoreError(RuntimeError):
    """The tracking store cannot be reached or does not do its work."""

    exit_code = 6


class StoreFull(StoreError):
    """The disk of the store has no room."""

    exit_code = 5


class StoreMoved(StoreError):
    """The store's folder was moved or copied, and its database leads to where it was."""

    exit_code = 2


class DamagedArtifact(StoreError):
    """The store's copy of a checkpoint is gone or is not what was sent."""

    exit_code = 3


class RunUnknown(ValueError):
    """No run, or more than one, goes by that word."""

    exit_code = 2


class ExperimentDeleted(ValueError):
    """The experiment exists, but is deleted."""

    exit_code = 2


class TakenOver(RuntimeError):
    """Another process trains the run now."""

    exit_code = 1
