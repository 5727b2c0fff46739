"""Two processes, as replicas or with the model's parts spread over them, train and distil as one does.

Both are started once for all tests: importing takes long.
"""

import importlib
import shutil
from contextlib import suppress
from functools import partial

import pandas as pd
import pytest
import torch
from torch.multiprocessing.spawn import ProcessExitedException

from routed_rl.lm.corpora import open_corpus
from routed_rl.lm.processes import launch, make_ready, process_group, processes, rank
from routed_rl.lm.training import train
from routed_rl.runs import read_checkpoint, read_metrics, write_checkpoint
from tests.lm.cases import CASES, LOGGED, STEPS, Stopped, log_often, make_batches, make_corpus, open_run, stop
from tests.lm.test_trainer import SETTINGS, routed
from tests.lm.two_processes import do_all
from tests.unlearning.calls import CALLS, call_all
from tests.unlearning.distillations import distil_again, make_teacher
from tests.unlearning.stages_together import do_study

LAYOUTS = ("replicated", "sharded")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with what one process and two have trained: weights and runs by the layout's and the case's name; the
    weights that one process trained; and how its distillation went, with the student's weights."""
    folder = tmp_path_factory.mktemp("distributed")
    corpus = make_corpus(folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        log_often(patch, LOGGED)
        alone = {}
        for name, case in CASES.items():
            with open_run(folder / "alone" / name) as run:
                alone[name] = case.train(corpus, run=run)
        with suppress(Stopped), open_run(folder / "replicated" / "begun on one") as run:
            CASES["parameters, tied"].train(corpus, run=run, on_step=stop)
        batches = make_batches(corpus)
        teacher = make_teacher(batches)
        write_checkpoint(folder / "teacher", teacher.state_dict(), {})
        with open_run(folder / "alone" / "distillation") as run:
            distilled = distil_again(teacher, batches, run=run)
        for name, weights in call_all(teacher, corpus).items():
            write_checkpoint(folder / "alone" / f"{name} of 0", weights, {})
    shutil.copytree(folder / "replicated", folder / "sharded")
    launch(partial(do_all, folder), 2)
    return folder, alone, distilled


def compare(trained, layout, name, alone_name):
    folder, alone, _ = trained
    double = CASES[alone_name].dtype == torch.float64
    rows, expected = (read_metrics(folder / run / "metrics.csv") for run in (f"{layout}/{name}", f"alone/{alone_name}"))
    assert [row["step"] for row in rows] == list(range(LOGGED, STEPS + 1, LOGGED))
    assert expected[-1]["loss"] < expected[0]["loss"] - 0.3
    for row, other in zip(rows, expected, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=0, abs=1e-6 if double else 1e-3)
    together = read_checkpoint(folder / layout / f"{name}, weights").tensors
    assert set(together) == set(alone[alone_name])
    if double:
        for key, tensor in alone[alone_name].items():
            # GPT-Neo, the preset, computes attention in single precision.
            torch.testing.assert_close(together[key], tensor, rtol=0, atol=1e-6 if name == "preset" else 1e-8)


@pytest.mark.integration
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_processes_are_one(trained, layout, name):
    compare(trained, layout, name, name)


@pytest.mark.integration
@pytest.mark.parametrize("begun", ["begun on two", "begun on one"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_interrupted_run_is_continued_on_two(trained, layout, begun):
    compare(trained, layout, begun, "parameters, tied")


@pytest.mark.integration
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_distillation_on_two_is_that_on_one(trained, layout):
    folder, _, (distilled, weights) = trained
    together = read_checkpoint(folder / layout / "distillation, weights")
    assert [step for step, _ in together.meta["student"]] == list(distilled.student)
    for (_, loss), expected in zip(together.meta["student"], distilled.student.values(), strict=True):
        assert loss == pytest.approx(expected, abs=1e-6)
    assert set(together.tensors) == set(weights)
    for key, tensor in weights.items():
        torch.testing.assert_close(together.tensors[key], tensor, rtol=0, atol=1e-8 * max(1.0, tensor.abs().max()))


@pytest.mark.integration
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_single_call_on_two_gives_each_what_one_gets(trained, layout, name):
    folder, _, _ = trained
    alone = read_checkpoint(folder / "alone" / f"{name} of 0").tensors
    for process in (0, 1):
        found = read_checkpoint(folder / layout / f"{name} of {process}").tensors
        assert found.keys() == alone.keys()
        for key, tensor in alone.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-2 if name == "half" else 1e-7)


@pytest.mark.integration
def test_stages_of_a_study_are_done_by_two_as_by_one(trained, tmp_path):
    folder, _, _ = trained
    done = [stage.name.partition("-")[0] for stage in (folder / "study/stages").iterdir() if stage.is_dir()]
    assert sorted(done) == ["attack"] * 3 + ["distil", "pretrain", "suppress"]
    alone, together = do_study(tmp_path / "study"), do_study(folder / "study")
    pd.testing.assert_frame_equal(together.results(), alone.results(), rtol=1e-4)


def test_a_model_that_each_process_would_train_for_itself_is_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="2 processes train together: pass the model that distribute"):
        make_ready(torch.nn.Linear(1, 1))


def test_if_one_process_fails_its_exit_status_is_that_of_all(monkeypatch):
    def spawn(*given):
        raise ProcessExitedException("one process ended", 0, 1, exit_code=2)

    monkeypatch.setattr(importlib.import_module("routed_rl.lm.processes"), "spawn", spawn)
    with pytest.raises(SystemExit) as ended:
        launch(print, 2)
    assert ended.value.code == 2


@pytest.mark.integration
def test_transformers_trainer_on_two_learns_what_our_loop_learns_on_one(trained):
    """Where each process counts its own targets, the Trainer's mean is a mean of means."""
    folder, _, _ = trained
    batches = make_batches(open_corpus(folder / "corpus"))
    model, router, objective = routed("activation")
    with router:
        loss = objective(model, batches.batch(0)) / batches.batch(0).scored.sum()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in model.parameters()])
        model.zero_grad()
        train(model, batches, SETTINGS, objective)
    for averaged, tolerance in ((True, 1e-5), (False, 0.05)):
        together = read_checkpoint(folder / f"trainer, {averaged}")
        assert together.meta["loss"] == pytest.approx(float(loss.detach()), rel=tolerance)
        assert together.meta["grad_norm"] == pytest.approx(float(norm), rel=tolerance)
        for name, tensor in model.state_dict().items() if averaged else ():
            torch.testing.assert_close(together.tensors[name], tensor, rtol=0, atol=1e-8)


def test_a_process_started_by_itself_stays_alone(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with process_group("cpu") as device:
        assert (device, rank(), processes()) == (torch.device("cpu"), 0, 1)
