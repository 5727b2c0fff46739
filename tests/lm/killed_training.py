"""Trainings that are killed, in processes that are forked after all imports.

No GPU may be visible, because torch's GPU threads do not survive a fork.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.utils.tensorboard
from torch import nn
from transformers import AutoModelForCausalLM, GPTNeoConfig

from routed_rl.lm import throughput, training
from routed_rl.lm.batches import Batches
from routed_rl.lm.training import Training, train
from routed_rl.runs import RunDirectory, rundir
from tests.lm.cases import SEED, VOCABULARY, make_batches, make_corpus

KILLS, STEPS = 10, 11


def make_model() -> nn.Module:
    """Return a model with a tied output layer. Its dropout makes a wrong random state visible."""
    config = GPTNeoConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_layers=1,
        num_heads=2,
        attention_types=[[["global"], 1]],
        max_position_embeddings=32,
        resid_dropout=0.2,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def train_in(folder: Path, batches: Batches) -> None:
    with RunDirectory.open(folder, {"of": "killed trainings"}, SEED) as run:
        train(make_model(), batches, Training(steps=STEPS, warmup=3), seed=SEED, run=run)


def forked(work: Callable[[], object], death: int | None = None, *, count: bool = False) -> int | None:
    """Do some work in a child, which kills itself at its call number ``death``. Counting calls makes it slow.

    Returns:
        How many calls it made, where they are counted; None if it was killed.

    Raises:
        RuntimeError: if it ended in another way.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def on_call(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1
            if calls == death:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.settrace(on_call if count or death is not None else None)
            work()
            sys.settrace(None)
            os.write(writing, str(calls).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        calls = int(pipe.read() or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status == 0:
        return calls
    if status != -signal.SIGKILL or death is None:
        raise RuntimeError(f"work that was to die at call {death} ended with code {status}")
    return None


def kill_until_done(work: Callable[[], object], calls: int, shares: Sequence[float]) -> int:
    """Do some work in one child after another, each killed after such a share of the work's calls, until one is quick
    enough; returns how many were killed."""
    for kills in range(100):
        if forked(work, int(shares[kills % len(shares)] * calls)) is not None:
            return kills
    raise RuntimeError("the work never ends: no child gets further than the one before it")


def main(folder: Path) -> None:
    """Write FOLDER/unbroken, and FOLDER/killed-1 … killed-10.

    Training k is killed (SIGKILL) after k elevenths of its function calls, and resumed. Every second one is killed
    again while it resumes.
    """
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "LOG_EVERY", 2)
        patch.setattr(training, "CHECKPOINT_EVERY", 2)
        patch.setattr(throughput, "SECONDS", 0.0)
        patch.setattr(rundir, "versions", lambda: {"python": "any"})  # asking git many times is slow
        patch.setattr(os, "fsync", lambda descriptor: None)  # a kill loses no written data, unlike a failed disk
        kill_all(folder)


def kill_all(folder: Path) -> None:
    batches = make_batches(make_corpus(folder / "corpus"))
    train(make_model(), batches, Training(steps=1))  # torch and transformers import much when it is first needed
    calls = forked(partial(train_in, folder / "unbroken", batches), count=True)
    for kill in range(1, KILLS + 1):
        work = partial(train_in, folder / f"killed-{kill}", batches)
        assert forked(work, kill * calls // (KILLS + 1)) is None
        assert kill % 2 == 0 or forked(work, calls // KILLS) is None
        forked(work)
