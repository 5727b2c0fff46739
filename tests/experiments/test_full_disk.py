"""A full disk ends a command in one line, and nothing is lost: what was written before stays, and is gone on from.

The disk is full for this process alone: files may not grow beyond a limit (RLIMIT_FSIZE).
"""

import contextlib
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from routed_rl.errors import guarded
from routed_rl.experiments import cli
from routed_rl.experiments.common.agents import worlds
from routed_rl.lm import build_corpus, find_topic, generate_stories, save_model, save_tokenizer, stories_tokenizer
from routed_rl.lm.own import saved_model
from routed_rl.lm.stories import FORGET
from routed_rl.rl.oversight_study import training
from routed_rl.runs import MetricsCSV, write_checkpoint, write_json
from routed_rl.runs.figures import save, subplots
from routed_rl.runs.tables import write_table
from routed_rl.unlearning import cache_teacher
from routed_rl.unlearning.attacked import save_attacked
from tests.experiments.mistakes import complaints
from tests.lm.tiny_models import tiny_model
from tests.unlearning.test_teacher_cache import Rows

TOKENIZER = stories_tokenizer()


@contextlib.contextmanager
def full(size):
    """Within the block, no file may be larger than this many bytes. No bytecode is written: it would be cut off."""
    sys.dont_write_bytecode = True
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = False


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def append(path):
    with contextlib.closing(MetricsCSV(path)) as file:
        for _ in range(200):
            file.append({"loss": 0.5, "step": 1.0})


WRITERS = {
    "checkpoint": lambda path: write_checkpoint(path, {"a": torch.ones(2000)}, {"step": 1}),
    "model": lambda path: save_model(tiny_model("llama"), TOKENIZER, path),
    "tokenizer": lambda path: save_tokenizer(TOKENIZER, path),
    "attacked model": lambda path: save_attacked(tiny_model("llama"), tiny_model("llama"), path),
    "figure": lambda path: save(subplots(height=2)[0], path.with_suffix(".png")),
    "table": lambda path: write_table([{"a": number} for number in range(900)], path, ["a"]),
    "json": lambda path: write_json(path, ["a"] * 900),
    "a user's model": lambda path: saved_model(tiny_model("llama"), TOKENIZER, path),
    "corpus": lambda path: build_corpus(path, generate_stories(300, 0), TOKENIZER, find_topic(FORGET)),
    "teacher's outputs": lambda path: cache_teacher(tiny_model("llama"), Rows(), 1, 50, path),
    "metrics": append,
}
"""For everything that is written: a call that writes it to a path."""
REPLACED = ("checkpoint", "model", "tokenizer", "figure", "table", "json")
"""What takes the place of an older one."""


@pytest.mark.parametrize("size", [0, 1000])
@pytest.mark.parametrize("name", WRITERS)
def test_every_writer_says_that_the_disk_is_full(name, size, tmp_path):
    there = {}
    if name in REPLACED:
        WRITERS[name](tmp_path / "it")
        there = contents(tmp_path)
    with full(size), pytest.raises(OSError, match="File too large"):
        WRITERS[name](tmp_path / "it")
    if name != "metrics":  # whose rows stay, as far as they go
        kept = contents(tmp_path)
        assert {path for path in kept if ".tmp-" in str(path)} == set()
        assert name not in REPLACED or kept == there


COMMANDS = {
    "train": ("train --total-steps 512 --learner.n-envs 8 --learner.hidden 8 --out", (20_000,)),
    "cifar": ("cifar --seeds 1 --epochs 1 --out", (9000,)),
    "steering-scalar": (
        "steering-scalar --documents 60 --batch-size 2 --steps 2 --seeds 1 --no-unrouted --out",
        (5000,),
    ),
}
"""Options of small runs, and sizes at which different files do not fit: logs, a checkpoint, a corpus."""


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, (_, sizes) in COMMANDS.items() for size in sizes])
def test_a_command_ends_in_one_line_and_goes_on_where_there_is_room(name, size, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    monkeypatch.setitem(worlds.FRESH_ENVS, "gridworld", (8, 8))
    line = [*COMMANDS[name][0].split(), str(tmp_path / "run")]
    with full(size):
        said = complaints(capsys, lambda: cli.main(line))
    assert len(said) == 1 and "File too large" in said[0]
    cli.main(line)
    assert list(tmp_path.rglob("evaluation.json"))


def test_output_that_cannot_be_written_is_said_in_one_line(capsys, tmp_path, monkeypatch):
    with Path("/dev/full").open("w") as nowhere:
        monkeypatch.setattr("sys.stdout", nowhere)
        said = complaints(capsys, lambda: guarded(lambda: print("results")))
    assert said == ["routed-rl: error: [Errno 28] No space left on device; make room, and start the same command again "
                    "to continue"]  # fmt: skip


def too_much_for_torch():
    torch.empty(1 << 56)


def too_much_for_numpy():
    np.empty(1 << 56)


def too_much_for_the_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("call", [too_much_for_torch, too_much_for_numpy, too_much_for_the_gpu])
def test_too_little_memory_is_said_in_one_line(call, capsys):
    (line,) = complaints(capsys, lambda: guarded(call))
    assert line.startswith("routed-rl: error: not enough memory: ")


@pytest.mark.parametrize("command", cli.MODULES)
def test_commands_draw_into_files_whatever_the_notebook_says(command, monkeypatch):
    seen = []

    class Module:
        main = staticmethod(lambda command: None)

    def imported(name):
        seen.append(os.environ["MPLBACKEND"])
        return Module

    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    monkeypatch.setattr(cli, "import_module", imported)
    cli.main([cli.command_name(command), *(["run"] if command in (cli.Evaluate, cli.Watch, cli.Curves) else [])])
    assert seen == ["agg"]
