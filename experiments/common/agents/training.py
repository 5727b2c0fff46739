"""Train one run, or many runs as one batch, in run directories. Killed runs continue. Finished runs are evaluated."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv

from routed_rl.envs import RECIPES
from routed_rl.errors import UserError, user_input
from routed_rl.experiments.common.agents.grid import check_options
from routed_rl.experiments.common.agents.options import Train
from routed_rl.experiments.common.agents.recipe import (
    FRESH_ENVS,
    MODEL,
    budget,
    evaluate_model,
    make_env,
    make_model,
    make_training_env,
    policies,
    world_options,
)
from routed_rl.experiments.common.display import show_table
from routed_rl.options import RUNS
from routed_rl.options.oversight import EARLY_STOPPED
from routed_rl.rl import ParallelLearner, RoutedAlgorithm, evaluate, true_returns
from routed_rl.rl.saving import build, model_meta, model_tensors
from routed_rl.runs import MetricsCSV, RunDirectory, RunError, config_hash, derive_seed, read_metrics
from routed_rl.runs.grid import FAILED
from routed_rl.runs.process import one_thread
from routed_rl.runs.progress import progress_display

CHECKPOINT_EVERY, EVALUATE_EVERY, CURVE_POINTS = 16, 8, 200
"""Updates between checkpoints; updates between points of a learning curve; and the most points of a learning curve."""
BEST = "best"
SCORE, LABELS = "eval/overseen_value", "eval/overseen_episodes"
HUGE = 1e6
"""A parameter above this size is a sign of divergence."""


Member = tuple[RunDirectory, RoutedAlgorithm]


def train_runs(commands: Sequence[Train]) -> None:
    """Train runs as one batch and print their results. The runs differ only in seed, oversight level and label noise.

    A run that diverges does not stop the others.

    Raises:
        UserError: for an impossible option, for a directory that holds another run, or for training that diverged.
    """
    one_thread()
    check_options(commands, len(commands))
    with ExitStack() as stack:
        runs, failed = [], {}
        for command in commands:
            try:
                runs.append(stack.enter_context(_open(command)))
            except (RunError, OSError) as error:
                failed[_directory(command)] = str(error)
        for run in runs:
            if run.finished:
                print(
                    f"{run.path} is finished; its result follows (--force starts again from zero; for a longer run, "
                    "give more --total-steps and another --out)",
                    file=sys.stderr,
                )
        while waiting := [run for run in runs if not run.finished and run.path not in failed]:
            failed |= _train(_together(waiting))
        for run in runs:
            if run.result is not None:
                config = run.record.config
                title = f"{config['method']}, oversight level {config['oversight']:.1%}, {run.path}"
                _show(run.result["policies"], title)
    if len(commands) == 1 and failed:
        raise UserError(*failed.values())
    for path, reason in failed.items():
        print(f"{FAILED}{path}: {reason}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(commands)} runs failed")


def _open(command: Train) -> RunDirectory:
    return RunDirectory.open(_directory(command), command.config(), command.seed, force=command.force)


def _directory(command: Train) -> Path:
    out = command.out or RUNS / f"{command.method}-{config_hash(command.config())}-s{command.seed}"
    return Path(os.path.realpath(out))


def _together(runs: Sequence[RunDirectory]) -> list[Member]:
    """Load runs at an equal step: all runs at the last checkpoint that all have, else only the runs furthest behind.

    A process that is killed while it saves leaves some runs one checkpoint ahead. These runs go back by one checkpoint.
    Their results then equal those of an uninterrupted batch to the byte.
    """
    members = [(run, _resume(run)) for run in runs]
    behind = min(model.num_timesteps for _, model in members)
    if all(behind in run.checkpoint_steps() for run in runs):
        members = [(run, m if m.num_timesteps == behind else _resume(run, behind)) for run, m in members]
    return [(run, model) for run, model in members if model.num_timesteps == behind]


def _train(members: Sequence[Member]) -> dict[Path, str]:
    """Train runs, all at an equal step, until their budget of steps is used. Write their results.

    Returns:
        The reason why each diverged run failed. If training stopped early, the other runs are unfinished and can
        continue from their checkpoints.
    """
    members = sorted(members, key=lambda member: str(world_options(member[0].record.config)))
    runs, models = [run for run, _ in members], [model for _, model in members]
    total, done = budget(runs[0].record.config), models[0].num_timesteps
    name = runs[0].path.name if len(runs) == 1 else f"{len(runs)} runs"
    with _progress(name, total) as report:
        callbacks = [_RunCallback(run, report, total) for run in runs]
        try:
            if len(models) == 1:
                models[0].learn(max(total - done, 0), callback=callbacks[0], reset_num_timesteps=done == 0)
            else:
                with user_input():
                    learner = ParallelLearner(models, _side_by_side(runs))
                learner.learn(max(total - done, 0), callbacks, reset_num_timesteps=done == 0)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the device has not enough memory for {name}; lower --parallel-seeds or --learner.n-envs: {error}"
            ) from error
        except (ValueError, FloatingPointError, RuntimeError):
            # The log, a distribution or the sampler of torch may be the first to meet a NaN.
            if not any(_diverged(model) for model in models):
                raise
            return _divergences(members)
    failed = _divergences(members)
    for run, model in members:
        if run.path not in failed:
            _finish(run, model)
    return failed


def _divergences(members: Sequence[Member]) -> dict[Path, str]:
    reason = "training has diverged by step {}; lower --learner.learning-rate"
    return {run.path: reason.format(model.num_timesteps) for run, model in members if _diverged(model)}


def _side_by_side(runs: Sequence[RunDirectory]) -> list[VecEnv]:
    """The environments of the runs, in order. Neighbouring runs with equal worlds share one environment object."""
    groups = itertools.groupby((run.record.config for run in runs), key=world_options)
    configs = [list(group) for _, group in groups]
    return [make_training_env(group[0], len(group) * group[0]["learner"]["n_envs"]) for group in configs]


def _resume(run: RunDirectory, step: int | None = None) -> RoutedAlgorithm:
    """The model of a run, from its last checkpoint (at most ``step``), or else new. It logs to the run's files."""
    config = run.record.config
    model, checkpoint = make_model(config, run.record.seed), run.load_checkpoint(step)
    if checkpoint is not None:
        with user_input():
            model = build(type(model), checkpoint, run.path, model.env, config["device"], False, {})
    tensorboard = TensorBoardOutputFormat(str(run.path / "tensorboard"))
    model.set_logger(Logger(str(run.path), [_MetricsWriter(run), tensorboard]))
    return model


def _diverged(model: RoutedAlgorithm) -> bool:
    """Whether some parameter is very large or NaN."""
    return not all(bool((parameter.abs() < HUGE).all()) for parameter in model.policy.parameters())


def _finish(run: RunDirectory, model: RoutedAlgorithm) -> None:
    """Evaluate a trained model and write the result of the run."""
    config, seed, trained = run.record.config, run.record.seed, model.num_timesteps
    stopping: dict[str, Any] = {}
    if config["method"] == EARLY_STOPPED:
        points = overseen_points(run)
        if points:
            model = type(model).load(run.path / BEST, device="cpu")
            scores = {steps: score for steps, score, _ in points}
            stopping |= {"stopped_at": model.num_timesteps, "overseen_value": scores.get(model.num_timesteps)}
        stopping["validation_labels"] = sum(labels for *_, labels in points)
    model.save(run.path / MODEL)
    run.finish(
        {
            "policies": evaluate_model(model, config, seed),
            "method": config["method"],
            "oversight": config["oversight"],
            "seed": seed,
            "env_steps": trained,
            "config_hash": run.record.config_hash,
            **stopping,
        }
    )


def overseen_points(run: RunDirectory) -> list[tuple[int, float, int]]:
    """The measurements of the stopping rule so far: environment steps, mean value of overseen outcomes, labels used."""
    rows = read_metrics(run.path / "metrics.csv")
    return [(int(r["env_steps"]), r[SCORE], int(r[LABELS])) for r in rows if SCORE in r]


def _show(policies: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Print results by policy: true return of sampled and greedy actions, ends of episodes, episode length."""
    rows = [
        [
            name,
            f"{result['true_return']:.3f}",
            f"{result['greedy']['true_return']:.3f}",
            ", ".join(f"{outcome} {share:.0%}" for outcome, share in result["outcomes"].items() if share >= 0.005),
            f"{result['episode_length']:.1f}",
        ]
        for name, result in policies.items()
    ]
    header = ("policy", "true return", "greedy true return", "episodes end on", "steps per episode")
    show_table(title, header, rows, left=(0, 3))


class _RunCallback(BaseCallback):
    """Saves checkpoints before rollouts, when the state of the model is complete, and measures learning curves."""

    model: RoutedAlgorithm

    def __init__(self, run: RunDirectory, report: Callable[[int], None], total: int) -> None:
        super().__init__()
        self.run, self.report, self.total = run, report, total
        config = run.record.config
        fewer = FRESH_ENVS[config["world"]][0]
        self.env = make_env(config, fewer, test=True)
        self.validation = make_env(config, fewer) if config["method"] == EARLY_STOPPED else None
        self.seed = derive_seed(run.record.seed, "curve")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        updates, steps = self.model._n_updates, self.model.num_timesteps
        self.report(steps)
        # The state of others' environments is not known. A run in one of them starts again after an interruption.
        known = self.run.record.config["world"] not in RECIPES
        if known and updates and updates % CHECKPOINT_EVERY == 0:
            self.run.save_checkpoint(steps, model_tensors(self.model), model_meta(self.model))

    def _on_rollout_end(self) -> None:
        # The next update writes this row. The row describes the policy that played this rollout.
        updates = self.total // (self.model.n_envs * self.model.n_steps)
        if self.model._n_updates % max(EVALUATE_EVERY, updates // CURVE_POINTS) == 0:
            returns = true_returns(self.model, self.env, seed=self.seed, policies=policies(self.model), metric="paper")
            for name, value in returns.items():
                self.logger.record(f"eval/{name}", value)
            if self.validation is not None:
                self._keep_the_best()

    def _keep_the_best(self) -> None:
        """Score the policy as a supervisor could: by the overseen episodes among new episodes. Save the best policy."""
        assert self.validation is not None
        values = self.model.overseer.values
        seed = derive_seed(self.run.record.seed, "validation", self.model._n_updates)
        shares = evaluate(self.model, self.validation, seed=seed, metric="paper")["outcomes_overseen"]
        labelled = sum(shares[name] for name in values)
        # If no episode was overseen, the policy gets the lowest score.
        score = sum(v * shares[name] for name, v in values.items()) / labelled if labelled else min(values.values())
        if score > max((point[1] for point in overseen_points(self.run)), default=-np.inf):
            self.model.save(self.run.path / BEST)
        self.logger.record(SCORE, score)
        self.logger.record(LABELS, round(labelled * self.validation.num_envs))


class _MetricsWriter(KVWriter):
    """Splits the log rows of Stable-Baselines3 into repeatable metrics and timings."""

    def __init__(self, run: RunDirectory) -> None:
        self.metrics, self.timings = run.metrics, run.timings

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        _append(
            self.metrics,
            {"env_steps": step, **{k: v for k, v in key_values.items() if not k.startswith("time/")}},
        )
        _append(
            self.timings,
            {"env_steps": step, **{k: v for k, v in key_values.items() if k.startswith("time/")}},
        )

    def close(self) -> None:
        """Do nothing. The run closes its files."""


def _append(file: MetricsCSV, row: dict[str, Any]) -> None:
    for name, value in row.items():
        if not np.isfinite(value):
            raise FloatingPointError(f"{name} is {value} at step {row['env_steps']}")
    file.append(row)


@contextmanager
def _progress(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar on a terminal. Elsewhere nothing is printed, because the metrics file holds the same numbers."""
    with progress_display() as display:
        task = display.add_task(name, total=total)
        yield lambda steps: display.update(task, completed=min(steps, total))
