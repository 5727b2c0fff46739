"""A Ray of its own and what runs on it: ``python -m tests.runs.ray_runs FOLDER``, as a command starts it.

Ray is started once, in a fresh process, because it reads some settings only when it is first imported. Leaves
FOLDER/found.json: codes, logs, sockets and processes.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

from routed_rl.runs import run_commands
from routed_rl.runs.ray import ray_pool


def sh(script: str) -> list[str]:
    return ["sh", "-c", script]


COMMANDS = [
    sh("echo out; echo err >&2; exit 3"),
    ["/no/such/program"],
    sh("kill -9 $$"),
    sh("read x || exit 5"),
    sh("echo $OMP_NUM_THREADS $MKL_NUM_THREADS"),
    [sys.executable, "-c", "print(6 * 7)"],
    sh("echo never"),
    sh("echo after"),
]
AFTER = [(), (), (), (), (), (), {0, 4}, {4, 5}]


def state(pid: int) -> tuple[str, int]:
    """A process's state and its parent; Z: it has ended, and nobody has asked for its exit code yet."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return fields[0], int(fields[1])


def is_running(pid: int) -> bool:
    try:
        return state(pid)[0] not in "ZX"
    except FileNotFoundError:
        return False


def sockets() -> set[str]:
    """The sockets, by inode, of this process and of those that it started, and so on."""
    parents, found = {}, set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = state(int(folder.name))[1]
        except (FileNotFoundError, ProcessLookupError):
            continue
    for pid in parents:
        ancestor = pid
        while ancestor in parents and ancestor != os.getpid():
            ancestor = parents[ancestor]
        if ancestor == os.getpid():
            try:
                links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()]
            except (FileNotFoundError, ProcessLookupError):
                continue
            found |= {link[len("socket:[") : -1] for link in links if link.startswith("socket:[")}
    return found


def listening() -> list[tuple[str, str]]:
    """Where our sockets listen: the protocol and the address, from the kernel's tables."""
    ours, found = sockets(), set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in ours:
                found.add((name, fields[1].rsplit(":", 1)[0]))
    return sorted(found)


def run_all(pool, folder: Path) -> dict[str, object]:
    """The commands above on a pool: exit codes, logs, and how often it was polled."""
    logs, polls = [folder / f"{i}.txt" for i in range(len(COMMANDS))], []
    codes = pool(COMMANDS, 2, logs, after=AFTER, on_poll=lambda: polls.append(1), poll_seconds=0.05)
    return {
        "codes": codes, "logs": [log.read_text() if log.exists() else None for log in logs], "polls": len(polls),
    }  # fmt: skip


def interrupt(pool, folder: Path) -> dict[str, object]:
    """Leave a pool by an exception: what was raised, and whether the command is still running half a minute later."""
    pid, raised = folder / "pid", ""

    def poll() -> None:
        if pid.exists() and pid.read_text():
            raise RuntimeError("enough")

    try:
        pool([sh(f"echo $$ > {pid}; sleep 600")], 1, [folder / "log"], on_poll=poll, poll_seconds=0.05)
    except RuntimeError as error:
        raised = str(error)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and is_running(int(pid.read_text())):
        time.sleep(0.05)
    return {"raised": raised, "running": is_running(int(pid.read_text()))}


def main(folder: Path) -> None:
    os.environ["OMP_NUM_THREADS"] = "7"  # of the user's; commands get their own
    for name in ("local", "ray", "shared"):
        (folder / name).mkdir()
    before = listening()
    found: dict[str, object] = {"local": run_all(run_commands, folder / "local")}
    with ray_pool(None, 2, folder / "shared") as pool:
        found["opened"] = [place for place in listening() if place not in before]
        found["ray"] = run_all(pool, folder / "ray")
        found["interrupted"] = interrupt(pool, folder)
    found["left"] = [path.name for path in (folder / "shared").iterdir()]
    found["default handler"] = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
