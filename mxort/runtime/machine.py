"""What this machine is, for doctor and for benchmark headers. Linux only, as mxort is."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

ISA_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512vbmi",
    "avx512_bf16",
    "amx_tile",
    "amx_int8",
    "amx_bf16",
)
"""The processor features that kernels use or will use, by their name in /proc/cpuinfo."""


@dataclass(frozen=True)
class Machine:
    """The machine; ``cores`` are those this process may use, ``cache_bytes`` its last-level cache, ``load`` the average
    of the last minute."""

    cpu: str
    cores: int
    isa: tuple[str, ...]
    memory_bytes: int
    cache_bytes: int
    system: str
    python: str
    load: float

    def line(self) -> str:
        """One line for the head of a table."""
        return (
            f"{self.cpu}, {self.cores} cores ({' '.join(self.isa) or 'no vector extensions'}), "
            f"{self.memory_bytes / 1e9:.0f} GB, last-level cache {self.cache_bytes >> 20} MB, load {self.load:.2f}"
        )


def describe_machine() -> Machine:
    """Reads /proc; what it does not say stays "unknown CPU" or 0."""
    cpu_info = _first_values(Path("/proc/cpuinfo"))
    memory = _first_values(Path("/proc/meminfo")).get("MemTotal", "0").split()[0]
    flags = set(cpu_info.get("flags", "").split())
    return Machine(
        cpu=cpu_info.get("model name", "unknown CPU"),
        cores=len(os.sched_getaffinity(0)),
        isa=tuple(name for name in ISA_FEATURES if name in flags),
        memory_bytes=int(memory) * 1024,
        cache_bytes=_cache_bytes(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        python=platform.python_version(),
        load=os.getloadavg()[0],
    )


def _cache_bytes() -> int:
    """Size of the largest cache that the first core sees, 0 if unknown."""
    sizes = [0]
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(text[-1:], 1))
    return max(sizes)


def status_bytes(field: str) -> int:
    """A memory figure of this process (VmHWM: peak resident set, VmRSS: resident now), 0 if unknown."""
    return int(_first_values(Path("/proc/self/status")).get(field, "0").split()[0]) * 1024


def _first_values(path: Path) -> dict[str, str]:
    """ "key : value" lines of a /proc file; the first line of a repeated key wins."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in reversed(lines))
    return {key.strip(): value.strip() for key, _, value in pairs if value.strip()}
