"""A module that writes down when it is imported, and whose command does what it is told."""

import os
import sys
from pathlib import Path

with Path(os.environ["IMPORTS"]).open("a") as file:
    file.write(f"{os.getpid()}\n")
print("imported")


def main(argv: list[str]) -> int | None:
    what, *more = argv
    if what == "exit":
        seen = [os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
        print(*more, *seen, sys.stdin.read() or "no input")
        print("error", file=sys.stderr)
        return int(more[0]) if more else None
    if what == "raise":
        raise KeyError(more[0])
    if what == "shell":
        os.execvp("sh", ["sh", "-c", *more])
    os.kill(os.getpid(), int(what))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
