"""Processes of tests. They are forked from one that has imported what takes longer than what most of them do."""

import multiprocessing
import os
from functools import partial

from torch.multiprocessing import start_processes

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.preloaded"])

spawn = partial(start_processes, start_method="forkserver")
"""As :func:`torch.multiprocessing.spawn`, but for how processes are started."""


def start(log, function, *arguments):
    """A process that calls a function, and adds its output to the file ``log``. It sees no GPU, and may fork."""
    process = FORKS.Process(target=_call, args=(log, function, arguments))
    process.start()
    return process


def run(log, function, *arguments):
    """The exit code of a process that calls a function; negative: the signal that ended it."""
    process = start(log, function, *arguments)
    process.join()
    return process.exitcode


def _call(log, function, arguments):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch's threads for a GPU do not survive a fork
    for descriptor in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    function(*arguments)
