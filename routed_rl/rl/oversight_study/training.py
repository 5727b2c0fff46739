"""Train one run, or many runs as one batch, in run directories. Killed runs continue. Finished runs are evaluated."""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch._dynamo  # by every optimizer; rather here, where a command looks for no garbage
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat
from stable_baselines3.common.vec_env import VecEnv

from routed_rl.errors import UserError, user_input
from routed_rl.options import RUNS
from routed_rl.options.oversight import EARLY_STOPPED, Run
from routed_rl.rl.algorithm import RoutedAlgorithm
from routed_rl.rl.env_state import UnknownStateError, environment_state
from routed_rl.rl.evaluation import evaluate, true_returns
from routed_rl.rl.oversight_study.grid import check_options, run_config
from routed_rl.rl.oversight_study.methods import title
from routed_rl.rl.oversight_study.recipe import MODEL, TaskOf, budget, evaluate_model, make_model, policies
from routed_rl.rl.oversight_study.tasks import Task
from routed_rl.rl.parallel import ParallelLearner
from routed_rl.rl.saving import build, model_meta, model_tensors
from routed_rl.runs import MetricsCSV, RunDirectory, RunError, config_hash, derive_seed, read_metrics
from routed_rl.runs.checkpoint import Checkpoint, read_checkpoint
from routed_rl.runs.grid import FAILED
from routed_rl.runs.process import one_thread
from routed_rl.runs.progress import progress_display

CHECKPOINT_EVERY = 16
"""Updates between checkpoints."""
EVALUATE_EVERY, FEWEST_POINTS, CURVE_POINTS = 8, 6, 200
"""Updates between points of a learning curve, and how many points it has at least and at most."""
BEST = "best"
SCORE, LABELS = "eval/overseen_value", "eval/overseen_episodes"
HUGE = 1e6
"""A parameter above this size is a sign of divergence."""


Show = Callable[[str, Mapping[str, Any]], None]
"""Shows the result of a finished run: a title, and the results by policy."""


class _Member(NamedTuple):
    run: RunDirectory
    task: Task
    model: RoutedAlgorithm


def train_runs(commands: Sequence[Run], task_of: TaskOf, show: Show = lambda title, policies: None) -> None:
    """Train runs as one batch and show their results. The runs differ only in seed, oversight level and label noise.

    A run that diverges does not stop the others.

    Raises:
        UserError: for an impossible option, for a directory that holds another run, or for training that diverged.
    """
    one_thread()
    check_options(commands, task_of, len(commands))
    with ExitStack() as stack:
        runs, failed = [], {}
        for command in commands:
            try:
                runs.append(stack.enter_context(_open(command)))
            except (RunError, OSError) as error:
                failed[_directory(command)] = str(error)
        for run in runs:
            if run.finished:
                longer = f"; to train it further, repeat the command with --extends {run.path}, more --total-steps and "
                longer = "" if run.record.config["method"] == EARLY_STOPPED else f"{longer}another --out"
                print(f"{run.path} is finished; its result follows (--force starts again{longer})", file=sys.stderr)
        while waiting := [run for run in runs if not run.finished and run.path not in failed]:
            failed |= _train(_together(waiting, task_of))
        for run in runs:
            if run.result is not None:
                config = run.record.config
                heading = f"{title(config['method'])}, oversight level {config['oversight']:.1%}, {run.path}"
                show(heading, run.result["policies"])
    if len(commands) == 1 and failed:
        raise UserError(*failed.values())
    for path, reason in failed.items():
        print(f"{FAILED}{path}: {reason}", file=sys.stderr)
    if failed:
        raise UserError(f"{len(failed)} of {len(commands)} runs failed")


def _open(command: Run) -> RunDirectory:
    """Return the directory of a run, which has a checkpoint if it extends another. RunError if it cannot be used."""
    run = RunDirectory.open(_directory(command), run_config(command), command.seed, force=command.force)
    try:
        if command.extends is not None and not run.finished and not run.checkpoint_steps():
            _begin_with(run, read_checkpoint(command.extends / MODEL))
    except BaseException:
        run.close()
        raise
    return run


def _begin_with(run: RunDirectory, model: Checkpoint) -> None:
    """Let a new run begin with the saved model of another. Where the environments' state is unknown, they reset."""
    known = any(name.startswith("env.") for name in model.tensors)
    tensors = {name: tensor for name, tensor in model.tensors.items() if known or name != "last_obs"}
    run.load_checkpoint()  # None, as there is none yet
    run.save_checkpoint(model.meta["counters"]["num_timesteps"], tensors, model.meta)


def _directory(command: Run) -> Path:
    out = command.out or RUNS / f"{title(command.method)}-{config_hash(run_config(command))}-s{command.seed}"
    return Path(os.path.realpath(out))


def _together(runs: Sequence[RunDirectory], task_of: TaskOf) -> list[_Member]:
    """Load runs at an equal step: all runs at the last checkpoint that all have, else only the runs furthest behind.

    A process that is killed while it saves leaves some runs one checkpoint ahead. These runs go back by one checkpoint.
    Their results then equal those of an uninterrupted batch to the byte.
    """
    members = [_resume(run, task_of) for run in runs]
    behind = min(member.model.num_timesteps for member in members)
    if all(behind in run.checkpoint_steps() for run in runs):
        members = [m if m.model.num_timesteps == behind else _resume(m.run, task_of, behind) for m in members]
    return [member for member in members if member.model.num_timesteps == behind]


def _train(members: Sequence[_Member]) -> dict[Path, str]:
    """Train runs, all at an equal step, until their budget of steps is used. Write their results.

    Returns:
        The reason why each diverged run failed. If training stopped early, the other runs are unfinished and can
        continue from their checkpoints.
    """
    members = sorted(members, key=lambda member: member.task.key())
    runs, models = [member.run for member in members], [member.model for member in members]
    total, done = budget(runs[0].record.config), models[0].num_timesteps
    name = runs[0].path.name if len(runs) == 1 else f"{len(runs)} runs"
    with _progress(name, total) as report:
        callbacks = [_RunCallback(member, report) for member in members]
        try:
            if len(models) == 1:
                models[0].learn(max(total - done, 0), callback=callbacks[0], reset_num_timesteps=done == 0)
            else:
                with user_input():
                    learner = ParallelLearner(models, _side_by_side(members))
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
    for member in members:
        if member.run.path not in failed:
            _finish(member)
    return failed


def _divergences(members: Sequence[_Member]) -> dict[Path, str]:
    reason = "training has diverged by step {}; lower --learner.learning-rate"
    return {run.path: reason.format(model.num_timesteps) for run, _, model in members if _diverged(model)}


def _side_by_side(members: Sequence[_Member]) -> list[VecEnv]:
    """The environments of the runs, in order. Neighbouring runs with equal tasks share one environment object."""
    groups = [list(group) for _, group in itertools.groupby(members, key=lambda member: member.task.key())]
    return [group[0].task.training_env(sum(member.model.n_envs for member in group)) for group in groups]


def _resume(run: RunDirectory, task_of: TaskOf, step: int | None = None) -> _Member:
    """A run with its model, from its last checkpoint (at most ``step``), or else new. It logs to the run's files."""
    config = run.record.config
    task = task_of(config)
    model, checkpoint = make_model(config, run.record.seed, task), run.load_checkpoint(step)
    if checkpoint is None and "extends" in config:
        raise UserError(f"{run.path} has lost the agent that it extends: start again with --force")
    if checkpoint is not None:
        state = Checkpoint(checkpoint.tensors, checkpoint.meta)
        with user_input():
            model = build(type(model), state, run.path, model.env, config["device"], False, {})
        if "extends" in config and "last_obs" not in state.tensors and model.env is not None:
            # Else the environments would repeat the episodes with which the other run began.
            model.env.seed(derive_seed(run.record.seed, "extends", model.num_timesteps))
    tensorboard = TensorBoardOutputFormat(str(run.path / "tensorboard"))
    model.set_logger(Logger(str(run.path), [_MetricsWriter(run), tensorboard]))
    return _Member(run, task, model)


def _diverged(model: RoutedAlgorithm) -> bool:
    """Whether some parameter is very large or NaN."""
    return not all(bool((parameter.abs() < HUGE).all()) for parameter in model.policy.parameters())


def _finish(member: _Member) -> None:
    """Evaluate a trained model and write the result of the run."""
    run, task, model = member
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
            "policies": evaluate_model(model, task, seed),
            "method": title(config["method"]),
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
    return [(int(r["env_steps"]), float(r[SCORE]), int(r[LABELS])) for r in rows if SCORE in r]


def curve_interval(config: Mapping[str, Any]) -> int:
    """Return the number of updates between points of a run's learning curve.

    It is smaller in a short run, which still has a point per update at most. A run of ``oracle-filtered`` trains for a
    part of the steps, and needs half of the points.
    """
    steps = config["learner"]["n_envs"] * config["learner"]["n_steps"]
    updates, whole = budget(config) // steps, config["total_steps"] // steps
    usual = min(EVALUATE_EVERY, whole // FEWEST_POINTS, 2 * updates // FEWEST_POINTS)
    return max(1, usual, updates // CURVE_POINTS)


class _RunCallback(BaseCallback):
    """Saves checkpoints before rollouts, when the state of the model is complete, and measures learning curves."""

    model: RoutedAlgorithm

    def __init__(self, member: _Member, report: Callable[[int], None]) -> None:
        super().__init__()
        self.run, self.task, _ = member
        self.report, self.interval = report, curve_interval(self.run.record.config)
        stops_early = self.run.record.config["method"] == EARLY_STOPPED
        self.env = self.task.test_env(self.task.fresh[0])
        self.validation = self.task.validation_env(self.task.fresh[0]) if stops_early else None
        self.seed = derive_seed(self.run.record.seed, "curve")

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        updates, steps = self.model._n_updates, self.model.num_timesteps
        self.report(steps)
        if updates and updates % CHECKPOINT_EVERY == 0 and self._resumable:
            self.run.save_checkpoint(steps, model_tensors(self.model), model_meta(self.model))

    @cached_property
    def _resumable(self) -> bool:
        """Whether a checkpoint can hold the state of the environments. Else an interrupted run starts from zero."""
        assert self.model.env is not None
        try:
            environment_state(self.model.env)
        except UnknownStateError:
            return False
        return True

    def _on_rollout_end(self) -> None:
        # The next update writes this row. The row describes the policy that played this rollout. The first row of the
        # run must have every column, also where the run extends another.
        if self.model._n_updates % self.interval == 0 or not self.run.metrics.rows:
            returns = true_returns(
                self.model, self.env, seed=self.seed, policies=policies(self.model), **self.task.measure(self.env)
            )
            for name, value in returns.items():
                self.logger.record(f"eval/{name}", value)
            if self.validation is not None:
                self._keep_the_best()

    def _keep_the_best(self) -> None:
        """Score the policy as a supervisor could: by the overseen episodes among new episodes. Save the best policy."""
        assert self.validation is not None
        values = self.model.overseer.values
        seed = derive_seed(self.run.record.seed, "validation", self.model._n_updates)
        shares = evaluate(self.model, self.validation, seed=seed, **self.task.measure(self.validation))[
            "outcomes_overseen"
        ]
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
