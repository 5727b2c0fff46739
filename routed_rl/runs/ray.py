"""The pool's commands as tasks of a Ray cluster: the same processes with the same results, on more machines."""

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
from routed_rl.runs.files import StrPath
from routed_rl.runs.pool import CANNOT_START, Queue, start_command

CONNECT_SECONDS = 5.0
NO_TELEMETRY = {"RAY_USAGE_STATS_ENABLED": "0"}
LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Read when Ray is imported: on every system, a Ray of its own does as on those two."""


@contextlib.contextmanager
def ray_pool(
    address: str | None, workers: int, shared: Path, gpus: int = 0
) -> Iterator[Callable[..., list[int | None]]]:
    """Within the block, what stands in for :func:`~routed_rl.runs.run_commands`, on a Ray cluster.

    Each command takes one CPU. Every machine needs this package, and must see the directory ``shared``, under which
    all that the commands write has to lie; that is tried before anything starts.

    Args:
        address: of a running cluster (``host:port``, ``ray://host:port`` or ``auto``); None starts a Ray of its own
            on this machine, on the loopback interface, without dashboard, and stops it afterwards.
        workers: CPUs of a Ray of its own.
        gpus: how many each command has to itself.

    Raises:
        MissingExtraError: if Ray is not installed.
        ValueError: if the address does not answer, or a machine does not see ``shared``.
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
            raise ValueError(f"no Ray cluster could be joined at {address!r}: {error}") from error
        _check_shared(shared)
        yield partial(_run_commands, ray, gpus=gpus)
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray puts its own in place, and leaves it


def _check_answer(address: str) -> None:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"a Ray address is host:port, ray://host:port or auto, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"nothing answers at the Ray address {address!r}: {error}") from error


def _check_shared(shared: Path) -> None:
    """ValueError unless every machine with a CPU can read a file of ours in ``shared`` and write one of its own."""
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
                    f"the machine {machine} cannot run our tasks: {str(error).splitlines()[-1]}"
                ) from error
            if not sees:
                raise ValueError(f"the machine {machine} does not share {str(shared)!r} with this one")
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
    """As :func:`~routed_rl.runs.run_commands`; a task whose machine is lost counts as a command that failed."""
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=0)(_run)
    queue = Queue(len(commands), after)
    running: dict[Any, int] = {}
    try:
        while running or queue.next is not None:
            while len(running) < workers and (index := queue.next) is not None:
                queue.start(index)
                # On another machine Python may live elsewhere.
                command = [None if part == sys.executable else os.fspath(part) for part in commands[index]]
                running[task.remote(command, os.path.abspath(logs[index]))] = index
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
            ray.cancel(reference)  # as Ctrl-C in the task, which then ends what it started
        if running:
            _, deaf = ray.wait(list(running), num_returns=len(running), timeout=CONNECT_SECONDS)
            for reference in deaf:
                ray.cancel(reference, force=True)  # its worker ends, and with it, on Linux, what that started
    return queue.codes


def _run(command: list[str | None], log: str) -> int:
    """One command in a fresh process, as the local pool starts it; the exit code."""
    # A task is cancelled by an interrupt. Raised while a process is being started, it would leave it behind.
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
