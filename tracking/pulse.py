"""What a live run says of itself at intervals: the machine's load, and a heartbeat that tells it from a dead one."""

import importlib.util
import json
import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tracking.connection import import_mlflow
from tracking.errors import TakenOver
from tracking.journal import Journal, now_ms
from tracking.ownership import Ownership
from tracking.records import HEARTBEAT

SAMPLE_SECONDS = 10.0
HEARTBEAT_SECONDS = 30.0
SILENT_SECONDS = 6 * HEARTBEAT_SECONDS  # who is silent for longer is dead, or cut off from the store
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def heartbeat_text(progress: dict) -> str:
    """The heartbeat tag: time in ms, and whoami."""
    return json.dumps({**whoami(), **progress, "time": now_ms()})


def whoami() -> dict:
    """Process, host and boot: a process number means nothing after a reboot. Of run.json and the heartbeat."""
    return {"pid": os.getpid(), "host": platform.node(), "boot": _boot()}


def _boot() -> str | None:
    return BOOT_ID.read_text().strip() if BOOT_ID.exists() else None


def has_died(word: dict) -> bool:
    """Whether who said this last (records.last_word) was a process of this machine, and is no more."""
    silent_seconds = time.time() - word.get("time", 0) / 1000
    if word.get("boot") != _boot() or silent_seconds < SILENT_SECONDS:  # in a container its number means nothing here
        return False
    return not Path(f"/proc/{word.get('pid')}").exists()


class Pulse(threading.Thread):
    """A thread of its own, since the sender may be busy for minutes with one upload.

    System metrics go through the journal and survive an outage; a heartbeat is only worth sending now.
    """

    def __init__(self, journal: Journal, run_id: str, store, progress: Callable[[], dict], ownership: Ownership):
        super().__init__(name="tracking-pulse", daemon=True)
        self.trouble: str | None = None
        self._journal, self._run_id, self._store, self._progress = journal, run_id, store, progress
        self._ownership = ownership
        self._stopping = threading.Event()

    def run(self) -> None:
        sampler = SystemSampler() if importlib.util.find_spec("psutil") else None
        next_beat = 0.0
        while not self._stopping.is_set():
            if time.monotonic() >= next_beat:
                self._beat()
                next_beat = time.monotonic() + HEARTBEAT_SECONDS
            self._stopping.wait(SAMPLE_SECONDS)
            if sampler is not None and not self._stopping.is_set():
                self._sample(sampler)

    def stop(self, timeout_seconds: float) -> None:
        """Ends the thread, unless the store lets its last heartbeat wait for longer."""
        self._stopping.set()
        if self.is_alive():
            self.join(timeout_seconds)

    def _beat(self) -> None:
        mlflow = import_mlflow()
        try:
            self._ownership.require()
            self._store.client.set_tag(self._run_id, HEARTBEAT, heartbeat_text(self._progress()))
            self.trouble = None
        except TakenOver as error:
            self.trouble = str(error)
            self._stopping.set()
        except (mlflow.MlflowException, OSError) as error:
            self.trouble = str(error)

    def _sample(self, sampler: "SystemSampler") -> None:
        step = int(self._progress().get("step") or 0)
        try:
            self._journal.append({"op": "metrics", "step": step, "metrics": sampler.sample()})
        except OSError as error:  # a full disk: the training loop, which writes there too, is who ends the run
            self.trouble = str(error)


class SystemSampler:
    """The machine's load under mlflow's own names, so that the UI shows it among the system metrics."""

    def __init__(self):
        import psutil

        self._psutil = psutil
        self._gpus = _gpu_handles()
        psutil.cpu_percent()  # the first call starts the measurement and returns 0
        self._network_start = psutil.net_io_counters()

    def sample(self) -> dict[str, float]:
        memory = self._psutil.virtual_memory()
        disk = self._psutil.disk_usage(os.sep)
        values = {
            "cpu_utilization_percentage": self._psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": disk.percent,
            "disk_available_megabytes": disk.free / 1e6,
        }
        values |= self._network() | self._gpu()
        return {f"system/{name}": round(float(value), 1) for name, value in values.items()}

    def _network(self) -> dict[str, float]:
        start, now = self._network_start, self._psutil.net_io_counters()
        if start is None or now is None:  # a machine without interfaces
            return {}
        return {
            "network_receive_megabytes": (now.bytes_recv - start.bytes_recv) / 1e6,
            "network_transmit_megabytes": (now.bytes_sent - start.bytes_sent) / 1e6,
        }

    def _gpu(self) -> dict[str, float]:
        values = {}
        for index, handle in enumerate(self._gpus):
            values |= {f"gpu_{index}_{name}": value for name, value in _gpu_load(handle).items()}
        return values


def _gpu_handles() -> list:
    """The NVIDIA devices; none without the package nvidia-ml-py or without a driver."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError:
        return []


def _gpu_load(handle) -> dict[str, float]:
    import pynvml

    readings = {
        "utilization_percentage": lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "memory_usage_megabytes": lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used / 1e6,
        "memory_usage_percentage": lambda: _memory_percentage(pynvml.nvmlDeviceGetMemoryInfo(handle)),
        "power_usage_watts": lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
    }
    values = {}
    for name, read in readings.items():
        try:
            values[name] = read()
        except pynvml.NVMLError:  # not every device tells everything (MIG slices: no utilization)
            continue
    return values


def _memory_percentage(memory) -> float:
    return 100 * memory.used / memory.total
