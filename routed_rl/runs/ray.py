"""A pool that runs commands as tasks of a Ray cluster: the same processes as the local pool, on more machines."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from routed_rl.extras import require
from routed_rl.paths import expanded
from routed_rl.runs.files import StrPath
from routed_rl.runs.pool import CANNOT_START, Queue, start_command

CONNECT_SECONDS = 5.0
NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0"}
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray reads this on import. A local Ray then listens only on the loopback interface, as on Windows and macOS."""


@contextlib.contextmanager
def ray_pool(
    address: str | None, workers: int, shared: Path, gpus: int = 0
) -> Iterator[Callable[..., list[int | None]]]:
    """Within the block, provide a function that replaces :func:`~routed_rl.runs.run_commands` on a Ray cluster.

    Each command uses one CPU. Every machine needs this package and access to the directory ``shared``. Commands may
    write only there. The access is tested before any command starts.

    Args:
        address: the address of a running cluster (``host:port``, ``ray://host:port`` or ``auto``). With None, a new
            local Ray is started on the loopback interface, without dashboard, and stopped after the block.
        workers: the number of CPUs of a new local Ray.
        shared: a directory that all machines share.
        gpus: the number of GPUs that each command gets for itself.

    Raises:
        MissingExtraError: if Ray is not installed.
        ValueError: if the address does not answer, or a machine cannot read and write ``shared``.
    """
    os.environ.update(NO_TELEMETRY if address else NO_TELEMETRY | LOOPBACK_ONLY)
    require("ray", "ray")
    import ray

    options: dict[str, Any] = {"configure_logging": False, "log_to_driver": False}
    if address is None:
        options |= {"address": "local", "num_cpus": workers, "include_dashboard": False}
    else:
        if address != "auto":
            _check_answer(address)
        options["address"] = address
    handler = signal.getsignal(signal.SIGTERM)
    try:
        try:
            ray.init(**options)
        except (ConnectionError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
            raise ValueError(f"cannot connect to a Ray cluster at {address!r}: {error}") from error
        _check_shared(shared)
        yield partial(_run_commands, ray, gpus=gpus)
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray installs its own handler and does not remove it


def _check_answer(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"a Ray address must be host:port, ray://host:port or auto, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"nothing answers at the Ray address {address!r}: {error}") from error


def _check_shared(shared: Path) -> None:
    """Raise a ValueError unless every machine with a CPU can read this machine's file in ``shared`` and write there."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    token = uuid.uuid4().hex
    question = shared / f".ray-{token}"
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    try:
        question.write_text(token)
        for node in nodes:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(num_cpus=0, scheduling_strategy=strategy)(_sees).remote(str(question), token)
            machine = node["NodeManagerAddress"]
            try:
                sees = ray.get(task)
            except ray.exceptions.RayError as error:
                raise ValueError(
                    f"the machine {machine} cannot run the pool's tasks: {str(error).splitlines()[-1]}"
                ) from error
            if not sees:
                raise ValueError(
                    f"the machine {machine} cannot read and write {str(shared)!r}: "
                    "use a directory that all machines share"
                )
    finally:
        for path in shared.glob(f".ray-{token}*"):
            path.unlink()


def _sees(question: str, token: str) -> bool:
    try:
        Path(f"{question}-{uuid.uuid4().hex}").write_text(token)
        return Path(question).read_text() == token
    except OSError:
        return False


def _run_commands(
    ray: Any,
    commands: Sequence[Sequence[StrPath]],
    workers: int,
    logs: Sequence[StrPath],
    *,
    gpus: int = 0,
    after: Sequence[Collection[int]] = (),
    on_poll: Callable[[], None] | None = None,
    poll_seconds: float = 0.2,
) -> list[int | None]:
    """Do what :func:`~routed_rl.runs.run_commands` does, on Ray; if a machine is lost, its commands count as failed."""
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_run)
    queue = Queue(len(commands), after)
    running: dict[Any, int] = {}
    try:
        while running or queue.next is not None:
            while len(running) < workers and (index := queue.next) is not None:
                queue.start(index)
                # On another machine Python may have another path, so None stands for it.
                command = [None if part == sys.executable else os.fspath(part) for part in commands[index]]
                running[task.remote(command, os.path.abspath(expanded(logs[index])))] = index
            done, _ = ray.wait(list(running), num_returns=1, timeout=poll_seconds)
            for reference in done:
                code = CANNOT_START
                with contextlib.suppress(ray.exceptions.RayError):
                    code = ray.get(reference)
                queue.codes[running.pop(reference)] = code
            if on_poll is not None:
                on_poll()
    finally:
        for reference in running:
            ray.cancel(reference)  # acts as Ctrl-C in the task; the task then kills its command
        if running:
            _, deaf = ray.wait(list(running), num_returns=len(running), timeout=CONNECT_SECONDS)
            for reference in deaf:
                ray.cancel(reference, force=True)  # kills the worker; on Linux its command dies with it
    return queue.codes


def _run(command: list[str | None], log: str) -> int:
    """Run one command in a new process, as the local pool does; return its exit code."""
    # Ray cancels a task by an interrupt. If this were raised while a process starts, the process would be left running.
    cancelled = threading.Event()
    handler = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    try:
        process = start_command([sys.executable if part is None else part for part in command], Path(log))
        if process is None:
            return CANNOT_START
        while process.poll() is None and not cancelled.wait(0.1):
            pass
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    finally:
        signal.signal(signal.SIGINT, handler)
    if cancelled.is_set():
        raise KeyboardInterrupt
    return process.returncode
