"""The pool on a real local Ray: the same exit codes, logs and environment as the local pool."""

import importlib.util
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from routed_rl.runs import run_commands
from routed_rl.runs.ray import ray_pool

if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed", allow_module_level=True)


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory):
    with ray_pool(None, 2, tmp_path_factory.mktemp("shared")) as run:
        yield run


def test_as_the_local_pool_does(pool, tmp_path: Path) -> None:
    commands = [
        sh("echo out; echo err >&2; exit 3"),
        ["/no/such/program"],
        sh("kill -9 $$"),
        sh("read x || exit 5"),
        sh("echo $OMP_NUM_THREADS $MKL_NUM_THREADS"),
        [sys.executable, "-c", "print(6 * 7)"],
        sh("echo never"),
        sh("echo after"),
    ]
    after = [(), (), (), (), (), (), {0, 4}, {4, 5}]
    results, polls = {}, []
    for name, run in (("local", run_commands), ("ray", pool)):
        logs = [tmp_path / name / f"{i}.txt" for i in range(len(commands))]
        codes = run(commands, 2, logs, after=after, on_poll=lambda: polls.append(1), poll_seconds=0.05)
        results[name] = codes, [log.read_text() if log.exists() else None for log in logs]
    assert results["ray"] == results["local"]
    assert results["ray"][0] == [3, 127, -signal.SIGKILL, 5, 0, 0, None, 0]
    assert results["ray"][1][4:] == ["1 1\n", "42\n", None, "after\n"]
    assert polls


def test_an_exception_ends_what_is_running(pool, tmp_path: Path) -> None:
    pids = tmp_path / "pid"

    def poll() -> None:
        if pids.exists() and pids.read_text():
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pool([sh(f"echo $$ > {pids}; sleep 600")], 1, [tmp_path / "log"], on_poll=poll, poll_seconds=0.05)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and is_running(int(pids.read_text())):
        time.sleep(0.05)
    assert not is_running(int(pids.read_text()))


def is_running(pid: int) -> bool:
    """Return whether a process with this id runs; a zombie, which has ended but was not waited for, does not run."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "'127.0.0.1:1'"),
        ("ray://127.0.0.1:1", "ray://127.0.0.1:1"),
        ("nowhere", "host:port.*'nowhere'"),
        ("localhost:99999", "localhost:99999"),
    ],
)
def test_an_address_that_does_not_answer_is_named(address: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message), ray_pool(address, 1, tmp_path):
        pass


def test_only_the_loopback_listens_and_nothing_is_left(tmp_path: Path) -> None:
    """Run in a new process, as the command does; the listening sockets are read from the kernel's tables."""
    code = f"""
import os, subprocess
from pathlib import Path
from routed_rl.runs.ray import ray_pool

def listening():
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{{name}}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found.add((name, fields[1].rsplit(":", 1)[0], fields[9]))
    return found

before = listening()
import signal
with ray_pool(None, 1, Path({str(tmp_path)!r})) as run:
    opened = {{(name, address) for name, address, _ in listening() - before}}
loopback = {{("tcp", "0100007F"), ("tcp6", "0000000000000000FFFF00000100007F"), ("tcp6", "0" * 24 + "01000000")}}
assert opened and opened <= loopback, opened
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []
