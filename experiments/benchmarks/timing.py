"""Fair measurements on a busy machine: cases take turns, and medians are compared. The machine is described."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from routed_rl.runs import versions

Name = TypeVar("Name")


@dataclass(frozen=True)
class Measured:
    """Seconds per unit of work (a step or an update): median, fastest and slowest repeat."""

    median: float
    fastest: float
    slowest: float

    @property
    def rate(self) -> float:
        """Units per second, from the median."""
        return 1 / self.median


def take_turns(
    cases: Mapping[Name, tuple[int, Callable[[], object]]], repeats: int, tick: Callable[[], None] = lambda: None
) -> dict[Name, Measured]:
    """Run every case once as a warm-up. Then run all cases in turn, ``repeats`` times.

    Args:
        cases: by name, the units of work per call, and the call.
        tick: called after each call.
    """
    seconds: dict[Name, list[float]] = defaultdict(list)
    for repeat in range(repeats + 1):
        for name, (units, call) in cases.items():
            start = time.perf_counter()
            call()
            if repeat:
                seconds[name].append((time.perf_counter() - start) / units)
            tick()
    return {name: Measured(statistics.median(s), min(s), max(s)) for name, s in seconds.items()}


class Stopwatch:
    """Time spent in the parts of a program. A part excludes the parts that it calls.

    Attributes:
        seconds: by part.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._running: list[str] = []
        self._since = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as ``name``."""
        self._switch()
        self._running.append(name)
        try:
            yield
        finally:
            self._switch()
            self._running.pop()

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count all calls of ``owner.method`` as ``name``."""
        call = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        setattr(owner, method, timed)

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def machine() -> dict[str, Any]:
    """The machine of the measurements: processor, cores, load average, threads, GPU, versions."""
    cpuinfo = Path("/proc/cpuinfo")
    models = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return {
        "processor": models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **versions(),
    }


def as_json(measured: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """Measurements as JSON."""
    return {name: {**asdict(m), "per_second": m.rate} for name, m in measured.items()}
