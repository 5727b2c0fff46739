"""A lock on a directory, which lets one process at a time work there."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from routed_rl.runs.record import LOCK, RunError


@contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Hold the lock of the directory at `path` within the block; raise RunError if another process holds it.

    The lock is released when the process dies. `what` names in the error what works in the directory, as "run".
    """
    with (path / LOCK).open("ab") as lock:
        if is_locked(path):
            time.sleep(0.1)  # somebody may just look, by is_locked()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # If another process has just renamed the directory, the locked file is no longer the one at this path.
            if not os.path.samestat(os.fstat(lock.fileno()), (path / LOCK).stat()):
                raise BlockingIOError
        except BlockingIOError:
            raise RunError(f"the {what} {str(path)!r} is in use by another process: wait for it or stop it") from None
        yield


def is_locked(path: Path) -> bool:
    """Say whether a process works in the directory at `path`."""
    try:
        with (path / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
