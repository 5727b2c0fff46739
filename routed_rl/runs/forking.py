"""What a :class:`~routed_rl.runs.nursery.Nursery` runs: ``python -m routed_rl.runs.forking MODULE``.

It imports a module, and then forks for every command line that it is told.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from routed_rl.runs.pool import end_with_parent


def main(module: str) -> None:
    """Import a module, answer requests, and end when there are no more. A forked process leaves by its own exit."""
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import prints is no answer
    command = importlib.import_module(module).main
    sys.stdout.flush()  # else every forked process would write what the import has printed
    sys.stderr.flush()
    gc.collect()
    gc.freeze()  # so that collections in forked processes do not copy the memory that they share
    for line in requests:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], request["options"])
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            requests.close()
            answers.close()
            _begin(command, request)
        else:
            with contextlib.suppress(OSError):  # it has its group already
                os.setpgid(answer, answer)  # here too: the group may be killed before the new process has come so far
        answers.write(json.dumps([request["number"], answer]) + "\n")
        answers.flush()


def _begin(command: Callable[[Sequence[str]], int | None], request: Mapping[str, Any]) -> NoReturn:
    """Do a command in the process that was just forked, as a process of its own would."""
    os.setpgid(0, 0)
    end_with_parent()
    os.environ.update(request["environment"])
    log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.close(log)
    os.close(nothing)
    sys.argv = [command.__module__, *request["start"]]
    sys.exit(command(request["start"]))


if __name__ == "__main__":
    main(sys.argv[1])
