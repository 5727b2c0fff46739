"""What each of two processes does in test_distributed.py."""

from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
from torch import nn

from routed_rl.lm.corpora import open_corpus
from routed_rl.lm.processes import process_group, processes, rank
from routed_rl.runs import read_checkpoint, write_checkpoint
from tests.lm.cases import CASES, LOGGED, Stopped, log_often, make_batches, make_llama, open_run, stop
from tests.lm.test_trainer import SETTINGS, routed, rows_of, train_by_trainer
from tests.unlearning.calls import call_all
from tests.unlearning.distillations import distil_again
from tests.unlearning.stages_together import do_study


def main(folder: Path) -> None:
    corpus = open_corpus(folder / "corpus")
    batches = make_batches(corpus)
    tokens = batches.batch(0).tokens

    def look(model: nn.Module, step: int) -> None:
        """Run the model as an evaluation between steps would. After it, a sharded model keeps some of its parts
        gathered.
        """
        if step % 3 == 0:
            with torch.no_grad():
                model(input_ids=tokens)

    for layout in ("replicated", "sharded"):
        shard = layout == "sharded"

        def trained(name, run_name=None, on_step=lambda model, step: None, shard=shard, layout=layout):
            first = rank() == 0
            with open_run(folder / layout / (run_name or name)) if first else nullcontext() as run:
                weights = CASES[name].train(corpus, shard, run, on_step)
            assert bool(weights) == first
            if first:
                write_checkpoint(folder / layout / f"{run_name or name}, weights", weights, {})

        for name in CASES:
            trained(name, on_step=look if name == "preset" else lambda model, step: None)
        with suppress(Stopped):
            trained("parameters, tied", "begun on two", stop)
        trained("parameters, tied", "begun on two")
        trained("parameters, tied", "begun on one")

        teacher = make_llama(tie_word_embeddings=True)
        teacher.load_state_dict(read_checkpoint(folder / "teacher").tensors)
        with open_run(folder / layout / "distillation") if rank() == 0 else nullcontext() as run:
            distilled, weights = distil_again(teacher, batches, shard, run)
        assert distilled.reached
        if rank() == 0:
            meta = {"student": [*distilled.student.items()]}
            write_checkpoint(folder / layout / "distillation, weights", weights, meta)
        for name, weights in call_all(teacher, corpus, shard).items():
            # Every process has the whole result.
            write_checkpoint(folder / layout / f"{name} of {rank()}", weights, {})

    do_study(folder / "study")

    rows = list(rows_of(batches, SETTINGS.steps))
    for averaged in (True, False):  # whether targets are counted over all processes
        options = {"per_device_train_batch_size": 2, "average_tokens_across_devices": averaged, "logging_steps": 1}
        trained_by = train_by_trainer(folder, routed("activation"), rows, **options)
        if rank() == 0:
            first_step = {name: trained_by.state.log_history[0][name] for name in ("loss", "grad_norm")}
            write_checkpoint(folder / f"trainer, {averaged}", trained_by.model.state_dict(), first_step)


def do_all(folder: Path) -> None:
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, process_group("cpu") as device:
        log_often(patch, LOGGED)
        assert (device.type, processes()) == ("cpu", 2)
        main(folder)
    assert processes() == 1
