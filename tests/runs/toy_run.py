"""A toy training run, and a driver that kills it at every change that it makes to the disk.

    toy_run.py run DIR STEP      run in DIR, print "paused" after STEP, and wait to be killed
    toy_run.py kill_runs DIR     make DIR/unbroken, and for every n DIR/killed-n, which was killed at n and resumed
    toy_run.py kill_writes DIR   for every n make DIR/n, in which the replacement of a checkpoint was killed at n

The driver imports torch once and then forks. Every child kills itself (SIGKILL) before its n-th change to the disk.
A change is: opening a file for writing, a rename, a removal, a new directory, a cut, an fsync, or half a metrics row.
"""

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from routed_rl.runs import MetricsCSV, RunDirectory, derive_seed, rundir, write_checkpoint

CONFIG = {"steps": 7, "every": 2, "lr": 0.1}
SEED = 3
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}


def train(path: Path, after_step: Callable[[int], None] = lambda step: None) -> None:
    """Run the toy in `path` to the end. Its noise shows whether random state and step were restored correctly."""
    with RunDirectory.open(path, CONFIG, SEED) as run:
        if run.finished:
            return
        step, weights, noise = 0, torch.zeros(3), torch.Generator()
        noise.manual_seed(derive_seed(SEED, "noise"))
        if (checkpoint := run.load_checkpoint()) is not None:
            step, weights = checkpoint.step, checkpoint.tensors["weights"]
            noise.set_state(checkpoint.tensors["noise"])
        while step < CONFIG["steps"]:
            started = time.perf_counter()
            weights = weights + CONFIG["lr"] * torch.randn(3, generator=noise)
            step += 1
            run.metrics.append({"step": step, "norm": float(weights.norm())})
            run.timings.append({"step": step, "seconds": time.perf_counter() - started})
            if step % CONFIG["every"] == 0:
                run.save_checkpoint(step, {"weights": weights, "noise": noise.get_state()}, {"by": "toy"})
            after_step(step)
        write_checkpoint(run.path / "model", {"weights": weights}, {"step": step})
        run.finish({"weights": weights.tolist()})


def contents(run: Path) -> dict[str, bytes | None]:
    """Return the bytes of every file of a run except its timings, and None for every directory."""
    return {
        str(entry.relative_to(run)): entry.read_bytes() if entry.is_file() else None
        for entry in run.rglob("*")
        if entry.name != "timings.csv"
    }


def pause_after(last: int) -> Callable[[int], None]:
    """Return an `after_step` that stops and waits after step `last`."""

    def pause(step: int) -> None:
        if step == last:
            print("paused", flush=True)
            time.sleep(60)

    return pause


def die_at(change: int) -> None:
    """Make this process kill itself before its `change`-th change to the disk (the first is 0)."""
    left = change

    def count(before_death: Callable[[], None] | None = None) -> None:
        nonlocal left
        if left == 0:
            if before_death is not None:
                before_death()
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1

    def audit(event: str, args: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        if event in CHANGES or writes:
            count()

    append = MetricsCSV.append

    def torn_append(self: MetricsCSV, row: Mapping[str, float | str]) -> None:
        def tear() -> None:
            whole = self.path.stat().st_size
            append(self, row)
            os.truncate(self.path, (whole + self.path.stat().st_size) // 2)

        count(tear)
        append(self, row)

    MetricsCSV.append = torn_append  # type: ignore[method-assign]
    os.fsync = lambda descriptor: count()
    sys.addaudithook(audit)


def forked(work: Callable[[], object], death: int) -> bool:
    """Do `work` in a child process that dies at its change `death`; return whether it finished."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            die_at(death)
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a run failed with code {status}")
    return status == 0


def kill_runs(root: Path) -> None:
    """Kill a run at every change; every fifth time, also kill the resumed run; then run it to the end."""
    train(root / "unbroken")
    death, ended = 0, False
    while not ended:
        work = partial(train, root / f"killed-{death}")
        ended = forked(work, death)
        if death % 5 == 0:
            forked(work, 7 * death % 60)
        work()
        death += 1


def kill_writes(root: Path) -> None:
    """For every change, kill the replacement of one checkpoint by another there, and leave the files as they are."""
    death, ended = 0, False
    while not ended:
        path = root / str(death) / "model"
        path.parent.mkdir()
        write_checkpoint(path, {"weights": torch.zeros(3)}, {"version": "old"})
        work = partial(write_checkpoint, path, {"weights": torch.ones(3)}, {"version": "new"})
        ended = forked(work, death)
        death += 1


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, directory = sys.argv[1], Path(sys.argv[2])
    if mode == "run":
        train(directory, pause_after(int(sys.argv[3])))
    else:
        os.fsync = lambda descriptor: None  # killing a process, unlike a power failure, loses no written data
        rundir.versions = lambda: {"python": "any"}  # asking git hundreds of times is slow
        {"kill_runs": kill_runs, "kill_writes": kill_writes}[mode](directory)
