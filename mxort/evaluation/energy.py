"""Energy that this machine counts: of CPUs by RAPL or hwmon, of AMD GPUs by amd-smi. Mostly only root may read them."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

_MICRO = 1e-6
_PERIOD = 0.5


class CpuEnergy:
    """Joules that the CPU packages used since it was made; None where no counter can be read."""

    def __init__(self, root: Path = Path("/sys/class")) -> None:
        self._counters = [path for path in _counters(root) if _read(path) is not None]
        self._before = [_read(path) or 0 for path in self._counters]

    def joules(self) -> float | None:
        if not self._counters:
            return None
        total = 0
        for path, before in zip(self._counters, self._before, strict=True):
            now = _read(path)
            if now is None:
                return None
            if now < before:  # it began again
                now += _read(path.with_name("max_energy_range_uj")) or 0
            total += now - before
        return total * _MICRO


def _counters(root: Path) -> list[Path]:
    """Microjoules: of packages, in which cores and uncore are contained; else of hwmon's sockets."""
    packages = sorted(root.glob("powercap/intel-rapl:*/energy_uj"))
    packages = [path for path in packages if path.parent.name.count(":") == 1]
    if packages:
        return packages
    labels = sorted(root.glob("hwmon/hwmon*/energy*_label"))
    sockets = [label for label in labels if _text(label).startswith("Esocket")]
    return [label.with_name(label.name.replace("_label", "_input")) for label in sockets]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _read(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text.isdecimal() else None


class GpuEnergy:
    """Joules of all AMD GPUs from here to :meth:`joules`, by their power twice a second; None without amd-smi."""

    def __init__(self, program: str | None = None) -> None:
        self._program = program or shutil.which("amd-smi")
        self._samples: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        if self._program:
            self._thread.start()

    def _sample(self) -> None:
        while (watts := _watts(str(self._program))) is not None:
            self._samples.append((time.perf_counter(), watts))
            if self._stop.wait(_PERIOD):
                return

    def joules(self) -> float | None:
        self._stop.set()
        if self._program:
            self._thread.join()
        if len(self._samples) < 2:
            return None
        pairs = zip(self._samples, self._samples[1:], strict=False)
        return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairs)


def _watts(program: str) -> float | None:
    """The power of all GPUs now."""
    try:
        done = subprocess.run(
            [program, "metric", "--power", "--json"], capture_output=True, timeout=10, check=True
        )
        found = list(_powers(json.loads(done.stdout)))
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    return sum(found) if found else None


def _powers(value: Any) -> list[float]:
    """Every "socket_power", which is {"value": watts, "unit": "W"} or the number alone."""
    if isinstance(value, list):
        return [power for each in value for power in _powers(each)]
    if not isinstance(value, dict):
        return []
    power = value.get("socket_power")
    number = power.get("value") if isinstance(power, dict) else power
    own = [float(number)] if isinstance(number, (int, float)) else []
    return own + [power for each in value.values() for power in _powers(each)]
