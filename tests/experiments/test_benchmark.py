"""The benchmark measures what it says: clocks that are stopped by hand, products that are counted by hand."""

import itertools
import json
from dataclasses import replace
from functools import partialmethod

import pytest
import torch

from routed_rl.experiments.benchmarks import (
    accelerator,
    benchmark,
    distillation,
    environments,
    language,
    learning,
    memory,
    routing,
    timing,
    training,
)
from routed_rl.experiments.cli import main
from routed_rl.experiments.common.agents import options as commands
from routed_rl.rl import RoutedAlgorithm
from routed_rl.rl.oversight_study.table import learning_curve
from routed_rl.runs import write_json

TINY = {"n_envs": 4, "n_steps": 4, "hidden": 8, "batch_size": 8, "replay_batch": 4}


@pytest.fixture
def clock(monkeypatch):
    """Every look at the clock is one second after the last."""
    ticks = itertools.count()
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))


@pytest.fixture
def tiny(monkeypatch):
    for name in training.UPDATES:
        train = commands.PRESETS[name]
        monkeypatch.setitem(commands.PRESETS, name, replace(train, learner=replace(train.learner, **TINY)))
        monkeypatch.setitem(training.UPDATES, name, 1)
    monkeypatch.setattr(training, "COMPILER", "any")
    monkeypatch.setattr(RoutedAlgorithm, "compile", partialmethod(RoutedAlgorithm.compile, disable=True))
    monkeypatch.setattr(environments, "STEPS", {2: 3})
    monkeypatch.setattr(environments, "SCALAR_STEPS", 20)
    for name, size in (("BLOCKS", 2), ("BATCH", 2), ("LENGTH", 8), ("WIDTH", 32), ("NEW_UNITS", 8)):
        monkeypatch.setattr(routing, name, size)
    monkeypatch.setattr(language, "STEPS", 1)
    monkeypatch.setattr(language, "SHAPES", {preset: (2, length) for preset, (_, length) in language.SHAPES.items()})
    for name, size in (("ROWS", 2), ("LENGTH", 64), ("WIDTH", 16), ("LAYERS", 1), ("VOCABULARY", 4096)):
        monkeypatch.setattr(distillation, name, size)
    for name, size in (("WIDTH", 16), ("LAYERS", 1), ("VOCABULARY", 256), ("ROWS", 2), ("LENGTH", 16)):
        monkeypatch.setattr(memory, name, size)


def test_cases_take_turns_and_medians_are_per_unit(clock):
    called = []
    measured = timing.take_turns(
        {name: (units, lambda name=name: called.append(name)) for name, units in (("a", 1), ("b", 4))}, repeats=3
    )
    assert called == ["a", "b"] * 4, "once for warmth, then in turn"
    assert measured["a"] == timing.Measured(1, 1, 1) and measured["b"].rate == 4


def test_a_stopwatch_counts_parts_without_the_parts_within(clock):
    watch = timing.Stopwatch()
    with watch.part("whole"), watch.part("inner"):
        pass
    with watch.part("whole"):
        pass
    assert watch.seconds == {"whole": 3, "inner": 1}  # 1 before, 1 after, 1 alone


def test_the_products_of_an_update_are_all_recorded(tiny):
    """A gradient step of the tiny learner takes 8 steps; two modules, gate and value network read 100 numbers."""
    model = training.trained("quick")
    products = training.record_products(model)
    shapes = {(str(op), tuple(left[0]), tuple(right[0])): n for (op, left, right), n in products.items()}
    gradient_steps = 2 * model.n_epochs
    portions = 2  # of the rollout, for its values
    assert shapes["aten.addmm.default", (8, 100), (100, 8)] == 4 * gradient_steps + portions
    assert shapes["aten.mm.default", (8, 8), (8, 100)] >= 4 * gradient_steps  # towards the first layers' weights
    training.multiply(products, 1)
    shares = training.parts("quick")
    assert sum(shares.values()) == pytest.approx(1)
    assert {"environment", "acting", "backward", "optimizer"} <= set(shares)
    assert torch.Tensor.backward.__name__ == "backward"


def write_run(directory, method, oversight, curve):
    config = replace(commands.PRESETS["quick"], method=method, oversight=oversight).config()
    directory.mkdir()
    from routed_rl.runs import RunRecord

    write_json(directory / "config.json", RunRecord.of(config, 0).as_json())
    policy = "steer:diamond" if method == "routing" else "unsteered"
    rows = "".join(f"{steps},{value}\n" for steps, value in curve)
    (directory / "metrics.csv").write_text(f"env_steps,eval/{policy}\n{rows}")
    times = "".join(f"{steps},{steps / 100}\n" for steps, _ in curve)
    (directory / "timings.csv").write_text(f"env_steps,time/time_elapsed\n{times}")


def test_curves_and_steps_to_the_target(tmp_path, capsys):
    write_run(tmp_path / "a", "routing", 0.1, [(100, 0.1), (200, 0.6), (300, 0.4)])
    write_run(tmp_path / "b", "oracle-filtered", 0.1, [(100, 0.1), (200, "")])
    write_run(tmp_path / "c", "routing", 0.1, [(100, 0.1)])
    assert learning_curve(tmp_path / "b") == [(1000, 0.1)], "drawn against steps over oversight"
    reached = learning.steps_to_target(tmp_path / "a")
    assert (reached["env_steps"], reached["seconds"]) == (200, 2)
    assert learning.steps_to_target(tmp_path / "c")["env_steps"] is None
    main(["curves", str(tmp_path / "a"), str(tmp_path / "b"), "--figure", str(tmp_path / "f.png")])
    assert "0.600" in capsys.readouterr().out and (tmp_path / "f.png").stat().st_size > 1000
    with pytest.raises(SystemExit) as stop:
        main(["curves"])
    assert stop.value.code == 2 and "at least one run" in capsys.readouterr().err
    for options, quoted in (
        (["--policy", "steer:fire"], "steer:fire"),
        (["--figure", "f.bmp"], "f.bmp"),
        (["no/such/run"], "no/such/run"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["curves", str(tmp_path / "a"), *options])
        error = capsys.readouterr().err
        assert stop.value.code == 2 and quoted in error and len(error.splitlines()) == 1


def test_benchmark_prints_every_ratio(tiny, tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "a", "routing", 0.1, [(100, 0.1), (200, 0.6)])
    main(["benchmark", "--repeats", "1", "--runs", str(tmp_path / "a"), "--json"])
    results = json.loads(capsys.readouterr().out)
    assert {"processor", "cores", "torch", "gpu"} <= set(results["machine"])
    assert results["environments"]["MiniGrid-Empty-5x5-v0, one environment"]["times_minigrid"] == 1
    assert set(results["training"]) == {"quick", "paper"}
    for row in results["training"].values():
        assert min(row["times_stable_baselines3"], row["roofline_share"], row["times_unrouted"]) > 0
        assert min(row["times_compiled"], row["roofline_share_compiled"]) > 0
    assert results["parallel_seeds"]["cpu"].keys() == {"1", "4", "16"}
    kept = {name: row["megabytes_kept"] for name, row in results["routing"].items()}
    assert kept["unrouted"] <= kept["activation"] < kept["m * a + (1 - m) * a.detach()"]
    assert results["routing"]["unrouted"]["times_unrouted"] == 1
    for row in results["memory"].values():
        assert row["computed_times_measured"] == row["computed_megabytes"] / row["measured_megabytes"]
        assert row["measured_megabytes"] > 0
    plain, ours = (results["distillation"][name] for name in (distillation.PLAIN, distillation.OURS))
    assert plain["times_plain"] == plain["peak_times_plain"] == 1
    logits = 2 * 63 * 4096 * 4 / 2**20
    assert 5 < plain["peak_megabytes"] / logits < 7, "so many arrays of that size are there at once"
    assert ours["peak_megabytes"] > 0 and 0 < ours["gradient_difference"] < 1e-3
    assert results["learning"][0]["env_steps"] == 200

    results["parallel_seeds"] = {"cpu": {int(seeds): rate for seeds, rate in results["parallel_seeds"]["cpu"].items()}}
    for module, name, part in (
        (benchmark, "_environments", "environments"),
        (training, "measure_parallel_seeds", "parallel_seeds"),
        *((of, "measure", of.__name__.rpartition(".")[2]) for of in (routing, language, distillation, memory)),
    ):  # what was measured above is shown as tables
        monkeypatch.setattr(module, name, lambda *_, part=part: results[part])
    monkeypatch.setattr(benchmark, "_training", lambda name, *_: results["training"][name])
    main(["benchmark", "--repeats", "1"])
    shown = capsys.readouterr().out
    assert "not measured" in shown and "speed / MiniGrid" in shown


def test_the_accelerators_script_measures_every_row(tiny, capsys, monkeypatch):
    """On a processor, in small; each row is a line as soon as it is there, and no row fails."""
    for name in ("UPDATES", "REPEATS"):
        monkeypatch.setattr(accelerator, name, 1)
    accelerator.main("cpu", minutes=10)
    machine, *lines = map(json.loads, capsys.readouterr().out.splitlines())
    assert machine["row"] == "machine" and [line["row"] for line in lines] == [
        name for name, _ in accelerator.rows("cpu")
    ]
    assert not [line for line in lines if "failed" in line or "skipped" in line]
    assert all(line.get("steps_per_second", line.get("tokens_per_second", 1)) > 0 for line in lines)


def test_a_row_that_fails_or_has_no_time_costs_only_itself(capsys, monkeypatch):
    def fails():
        raise ValueError("no memory")

    monkeypatch.setattr(accelerator, "rows", lambda device: iter([("a", fails), ("b", lambda: {"rate": 1})]))
    accelerator.main("cpu", minutes=10)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:]] == [
        {"row": "a", "failed": "ValueError: no memory"},
        {"row": "b", "rate": 1},
    ]
    accelerator.main("cpu", minutes=-1)
    assert all("skipped" in line for line in capsys.readouterr().out.splitlines()[1:])
