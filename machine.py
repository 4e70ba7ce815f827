"""What this process may use of the machine."""

import os


def usable_cores() -> int:
    """Cores that this process may run on: a cluster's job has some of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class DeviceError(ValueError):
    """A device or precision that this machine does not have."""

    exit_code = 2


def require_precision(amp: str | None, device: str) -> None:
    """DeviceError for fp16 without a GPU, where its gradients can be scaled: `device` as options or torch name it."""
    if amp == "fp16" and device == "cpu":
        raise DeviceError("--amp fp16 needs a GPU; on a CPU take --amp bf16")
