"""The pool: exit codes in order, a limit on running commands, logs, one thread each, and nothing left running."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from routed_rl.runs import pool, run_commands


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


def test_codes_are_in_order_and_a_failure_stops_nobody(tmp_path: Path) -> None:
    commands = [
        sh("echo out; echo err >&2; exit 3"),
        ["/no/such/program"],
        sh("kill -9 $$"),
        sh("read x || exit 5"),
    ]
    logs = [tmp_path / "logs" / f"{i}.txt" for i in range(4)]
    polls: list[int] = []
    codes = run_commands(commands, 2, logs, on_poll=lambda: polls.append(1), poll_seconds=0.01)
    assert codes == [3, 127, -signal.SIGKILL, 5]
    assert polls
    assert logs[0].read_text() == "out\nerr\n"
    assert logs[1].read_text() == "'/no/such/program' cannot be started: No such file or directory\n"
    run_commands([sh("echo again")], 1, logs[:1], poll_seconds=0.01)
    assert logs[0].read_text() == "out\nerr\nagain\n"


def test_each_process_has_one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("KEPT", "yes")
    script = sh("echo $OMP_NUM_THREADS $MKL_NUM_THREADS $OPENBLAS_NUM_THREADS $KEPT")
    assert run_commands([script], 1, [tmp_path / "log"], poll_seconds=0.01) == [0]
    assert (tmp_path / "log").read_text() == "1 1 1 yes\n"


def test_as_many_at_once_as_there_are_workers_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    at_once: list[int] = []

    def popen(*args: object, **kwargs: object) -> subprocess.Popen[bytes]:
        at_once.append(1 + sum(process.returncode is None for process in started))
        started.append(real(*args, **kwargs))
        return started[-1]

    real = subprocess.Popen
    monkeypatch.setattr(pool.subprocess, "Popen", popen)
    for name in "ab":
        os.mkfifo(tmp_path / name)
    # Each end of a pipe waits for the other, so a pair ends only if both commands run at the same time.
    pairs = []
    for name in "ab":
        pairs += [sh(f"echo {name} > {tmp_path / name}"), sh(f"cat {tmp_path / name}")]
    logs = [tmp_path / f"{i}.log" for i in range(4)]
    assert run_commands(pairs, 2, logs, poll_seconds=0.01) == [0, 0, 0, 0]
    assert [log.read_text() for log in logs] == ["", "a\n", "", "b\n"]
    assert max(at_once) == 2


def test_each_command_sees_a_device_that_few_others_have(tmp_path: Path) -> None:
    for name in "ab":
        os.mkfifo(tmp_path / name)
    # The two commands of a pair run at the same time, because each end of a pipe waits for the other.
    commands = []
    for name in "ab":
        commands += [sh(f"echo $CUDA_VISIBLE_DEVICES; echo > {tmp_path / name}")]
        commands += [sh(f"echo $CUDA_VISIBLE_DEVICES; cat {tmp_path / name} > /dev/null")]
    logs = [tmp_path / f"{i}.log" for i in range(4)]
    assert run_commands(commands, 2, logs, devices=("3", "GPU-7"), poll_seconds=0.01) == [0, 0, 0, 0]
    seen = [log.read_text().strip() for log in logs]
    assert {*seen[:2]} == {*seen[2:]} == {"3", "GPU-7"}


def test_a_command_starts_when_those_before_it_have_ended_well(tmp_path: Path) -> None:
    """Commands may be given in any order; a command whose predecessor failed is never started."""
    there = tmp_path / "there"
    commands = [
        sh(f"cat {there}"),
        sh(f"sleep 0.2; echo made > {there}"),
        sh("exit 4"),
        sh("echo never"),
        sh("echo never"),
        ["/no/such/program"],
        sh("echo never"),
    ]
    after = [{1}, (), (), {1, 2}, [3], (), {5}]
    logs = [tmp_path / f"{i}.log" for i in range(len(commands))]
    codes = run_commands(commands, 2, logs, after=after, poll_seconds=0.01)
    assert codes == [0, 0, 4, None, None, 127, None]
    assert logs[0].read_text() == "made\n" and not any(logs[i].exists() for i in (3, 4, 6))


@pytest.fixture
def imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the id of every process that has imported the toy module."""
    monkeypatch.setenv("IMPORTS", str(tmp_path / "imports"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    monkeypatch.setattr(pool, "PACKAGE", "tests")
    return tmp_path / "imports"


def toy(*arguments: str, module: str = "tests.runs.nursery_toy") -> list[str]:
    return [*pool.PYTHON, module, *arguments]


linux = pytest.mark.skipif(sys.platform != "linux", reason="only on Linux are modules imported once")


@linux
def test_a_module_of_several_commands_is_imported_once(imports: Path, tmp_path: Path) -> None:
    """The processes differ in nothing else from those of single commands."""
    commands = [toy("exit", "3"), toy("raise", "why"), toy("9"), toy("exit"), sh("exit 4")]
    logs = [tmp_path / "logs" / f"{i}.txt" for i in range(len(commands))]
    polls: list[int] = []
    codes = run_commands(
        commands, 2, logs, after=[(), (), (), {3}, ()], devices=("7",), on_poll=lambda: polls.append(1)
    )
    assert codes == [3, 1, -signal.SIGKILL, None, 4] and polls
    codes = run_commands(commands[3:4] * 2, 2, logs[3:4] * 2, devices=("7",), poll_seconds=0.01)
    assert codes == [0, 0] and len(imports.read_text().split()) == 2
    on_gpu = [tmp_path / f"gpu {i}.txt" for i in range(2)]
    assert run_commands([toy("exit", "0", "--device=cuda")] * 2, 1, on_gpu, poll_seconds=0.01) == [0, 0]
    assert len(imports.read_text().split()) == 4, "on a GPU each process imports for itself"
    assert sorted(logs[0].read_text().splitlines()) == ["3 7 1 no input", "error"]
    assert logs[1].read_text().endswith("KeyError: 'why'\n")
    assert sorted(logs[3].read_text().splitlines()) == ["7 1 no input", "7 1 no input", "error", "error"]


@linux
def test_a_nursery_that_was_killed_stops_nothing(imports: Path, tmp_path: Path) -> None:
    """What it runs is over. The commands after that have processes of their own."""
    killed: list[int] = []

    def on_poll() -> None:
        if not killed and logs[1].exists() and "ready" in logs[1].read_text():
            killed.append(int(imports.read_text()))
            os.kill(killed[0], signal.SIGKILL)

    logs = [tmp_path / f"{i}.txt" for i in range(4)]
    commands = [toy("exit", "3"), toy("shell", "echo ready; sleep 60"), toy("exit", "4"), toy("exit", "5")]
    assert run_commands(commands, 1, logs, on_poll=on_poll, poll_seconds=0.01) == [3, -signal.SIGKILL, 4, 5]
    assert killed and all("no input" in logs[i].read_text() for i in (0, 2, 3))


@linux
def test_every_log_says_of_a_module_that_it_is_not_there(imports: Path, tmp_path: Path) -> None:
    command, logs = toy(module="tests.runs.no_such_module"), [tmp_path / f"{i}.txt" for i in range(2)]
    codes = run_commands([command] * 2, 1, logs, poll_seconds=0.01)
    alone = subprocess.run(command, capture_output=True, text=True)
    assert codes == [alone.returncode] * 2 and [log.read_text() for log in logs] == [alone.stderr] * 2


@pytest.mark.parametrize(
    ("how", "forked"),
    [("exception", False), ("interrupt", False), ("terminate", False), pytest.param("terminate", True, marks=linux)],
)
def test_children_and_grandchildren_end_with_the_parents_loop(
    tmp_path: Path, how: str, forked: bool, imports: Path
) -> None:
    alive, log = tmp_path / "alive", tmp_path / "log"
    os.mkfifo(alive)
    # Both processes hold the pipe open for writing, so reading ends only when both are gone.
    reader = os.open(alive, os.O_RDONLY | os.O_NONBLOCK)
    script = f"exec 3> {alive}; trap '' INT TERM HUP; sleep 60 & echo ready; wait; sleep 60"
    command, other = (toy("shell", script), toy("exit")) if forked else (sh(script), sh("exit"))

    def on_poll() -> None:
        if log.exists() and log.read_text() == "ready\n":
            if how == "terminate":
                os.kill(os.getpid(), signal.SIGTERM)
            raise KeyError("progress") if how == "exception" else KeyboardInterrupt

    expected = {"exception": KeyError, "interrupt": KeyboardInterrupt, "terminate": SystemExit}[how]
    with pytest.raises(expected):
        run_commands([command, other], 1, [log, tmp_path / "other"], on_poll=on_poll, poll_seconds=0.01)
    os.set_blocking(reader, True)
    assert os.read(reader, 1) == b""
    os.close(reader)
    assert not (tmp_path / "other").exists()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_senseless_calls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        run_commands([sh("exit")], 0, [tmp_path / "log"])
    with pytest.raises(ValueError, match="1 logs for 2 commands"):
        run_commands([sh("exit"), sh("exit")], 1, [tmp_path / "log"])
    with pytest.raises(ValueError, match="got 1 entries for 2 commands"):
        run_commands([sh("exit"), sh("exit")], 1, [tmp_path / "log", tmp_path / "other"], after=[()])
    assert run_commands([], 1, []) == []
