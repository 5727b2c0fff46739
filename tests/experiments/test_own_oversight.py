"""OversightStudy: methods compared in an environment of the user's own, from Python and from the command line."""

import os
from dataclasses import replace
from functools import partial

import gymnasium as gym
import numpy as np
import pandas as pd
import pytest
from gymnasium import spaces
from matplotlib.figure import Figure
from stable_baselines3.common.vec_env import VecEnv

from routed_rl.experiments import cli
from routed_rl.options.oversight import OWN, Run
from routed_rl.rl import Method, Overseer, OversightReport, OversightStudy, RoutedPPO
from routed_rl.rl.oversight_study import training
from routed_rl.rl.oversight_study.recipe import make_model, own_task
from routed_rl.rl.oversight_study.tasks import OwnTask
from routed_rl.runs import read_metrics
from routed_rl.runs.studies import RunsFailedError
from tests.experiments.described import assert_described
from tests.experiments.in_process import run_in_process
from tests.own_code import forget, own_code
from tests.rl.worlds import TwoDoors, small_model, two_doors

OUTCOMES = {"bad": -2.0, "good": 3.0}
TINY = replace(OWN, n_envs=4, n_steps=16, batch_size=32, hidden=8, replay_batch=8, replay_steps=1)
SMALL = {"methods": ["routing-predicted", "naive-early-stopped"], "levels": [0.5], "seeds": 1, "total_steps": 640}
MODULE = '''
"""An environment as a user writes it."""
import numpy as np
from routed_rl.rl import Method
from tests.rl.worlds import TwoDoors
from tests.experiments.test_own_oversight import KnownDoors

reward = 3
MINE = Method("value", modular=True, routed=True)
naive = Method("penalise", predicts=True)

def make_env(level):
    return TwoDoors(level)

def make_known(level):
    return KnownDoors(level)

def make_vector(level):
    return gym.make_vec("CartPole-v1")

def make_seen(level):
    made = TwoDoors(level)
    made.render_mode, made.render = "rgb_array", lambda: np.zeros((8, 8, 3), np.uint8)
    return made

def make_watched(level):
    assert level > 0
    return TwoDoors(level)

def make_number(level):
    return level

def make_silent(level):
    import gymnasium as gym
    return gym.make("CartPole-v1")
'''


class KnownDoors(TwoDoors):
    """Two doors whose state can be saved."""

    count = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.count = self.count + 1 if seed is None else seed % 1000
        self.position, self.overseen = 1 + self.count % 3, self.count % 2 == 0
        return self._obs(), {}

    def get_state(self):
        return {"now": np.array([self.count, self.position, self.steps, self.overseen])}

    def set_state(self, state):
        self.count, self.position, self.steps, overseen = state["now"].tolist()
        self.overseen = bool(overseen)


class Pictures(gym.Env):
    """Observes what it is told, and ends at once."""

    action_space = spaces.Discrete(2)

    def __init__(self, space):
        self.observation_space = space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action):
        info = {"outcome": "good", "overseen": True}
        return self.observation_space.sample(), 0.0, True, False, info


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the user's module, all runs in this process."""
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 3)
    monkeypatch.setattr(training, "FEWEST_POINTS", 1)
    monkeypatch.setattr(OwnTask, "fresh", (4, 16))
    run_in_process(monkeypatch)
    with own_code(tmp_path) as write:
        write("doors.py", MODULE)
        yield tmp_path


def study(folder, function="make_env", **options):
    given = {"out": folder / "study", "learner": TINY, **SMALL, **options}
    return OversightStudy(env=f"{folder}/doors:{function}", outcomes=OUTCOMES, **given)


@pytest.mark.parametrize("function", ["make_env", "make_known"])
@pytest.mark.usefixtures("undrawn")
def test_a_study_broken_off_goes_on_to_the_same_table(folder, function, monkeypatch):
    whole = study(folder, function)
    plan = whole.plan()
    assert plan.method.tolist() == SMALL["methods"] and not plan.finished.any()
    table = whole.run()
    assert whole.plan().finished.all() and set(table.method) == set(SMALL["methods"])
    assert isinstance(whole.figure("returns"), Figure)
    given = {"naive-early-stopped": [whole.out / "runs" / "naive-early-stopped" / "0.5-s0"]}
    assert len(OversightReport(given, wanted="good").results()) < len(table)
    with pytest.raises(ValueError, match="wanted must be the outcome to steer to, one of bad, good, got 'diamond'"):
        OversightReport(given).summary()
    assert_described(whole.out)
    assert {"Share of episodes that end in good", "Steered to another outcome"} < {
        line.strip("# ").partition(",")[0] for line in whole.summary().splitlines()
    }

    real, calls = RoutedPPO.train, []

    def broken(model):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        real(model)

    again = study(folder, function, out=folder / "again")
    with monkeypatch.context() as patch:
        patch.setattr(RoutedPPO, "train", broken)
        with pytest.raises(RunsFailedError):
            again.run()
    assert again.plan().finished.tolist() == [False, True]
    with monkeypatch.context() as patch:
        patch.setattr(RoutedPPO, "train", lambda model: (calls.append(1), real(model)))
        again.run()
    updates = SMALL["total_steps"] // (TINY.n_envs * TINY.n_steps)
    from_checkpoint = 6 if function == "make_known" else 0  # else the environment's state is not known
    assert len(calls) == 8 + 2 * updates - from_checkpoint
    for name in ("results.csv", "summary.md"):
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("world", ["own", "built-in"])
def test_a_method_of_ones_own_is_compared_like_the_others(folder, world, capsys):
    here = ["--env", "doors:make_env", "--outcomes", "bad=-2", "good=3"] if world == "own" else []
    line = "oversight --methods naive doors:MINE --levels 0.5 --seeds 1 --total-steps 2048 --out study"
    cli.main([*line.split(), *here])
    assert "| MINE |" in capsys.readouterr().out
    wanted = "good" if world == "own" else "diamond"
    table = pd.read_csv(folder / "study" / "results.csv")
    assert f"steer:{wanted}" in set(table[table.method == "MINE"].policy)
    run = folder / "study" / "runs" / "MINE" / "0.5-s0"
    assert RoutedPPO.load(run / "model").overseer.method == Method("value", modular=True, routed=True)
    cli.main(["evaluate", str(run), "--steer", wanted, "--n-envs", "4"])
    assert f"policy: steer:{wanted}" in capsys.readouterr().out
    cli.main(["curves", str(run), "--figure", str(folder / "curves.png")])
    last = read_metrics(run / "metrics.csv")[-1][f"eval/steer:{wanted}"]
    assert f"{last:.3f}" in capsys.readouterr().out
    result = (run / "evaluation.json").read_bytes()
    (folder / "doors.py").write_text(MODULE.replace('Method("value"', 'Method("reach"'))
    forget(folder)
    with pytest.raises(SystemExit):
        cli.main([*line.split(), *here])
    said = capsys.readouterr().err
    assert ("doors.py has changed" if world == "own" else 'switches.reward is "value" there, "reach" here') in said
    assert (run / "evaluation.json").read_bytes() == result


@pytest.mark.usefixtures("undrawn")
def test_the_command_does_what_python_does(folder, capsys):
    options = {"methods": ["filtering"], "levels": [1.0], "seeds": 1, "total_steps": 2048, "out": folder / "a"}
    made = OversightStudy(env="doors:make_env", outcomes=OUTCOMES, **options)
    made.run()
    line = "--methods filtering --levels 1 --seeds 1 --total-steps 2048 --out b --env doors:make_env"
    cli.main(["oversight", *line.split(), "--outcomes", "bad=-2", "good=3"])
    assert "True return" in capsys.readouterr().out
    for name in ("results.csv", "study.json", "runs/filtering/1.0-s0/config.json"):
        assert (folder / "a" / name).read_bytes() == (folder / "b" / name).read_bytes(), name
    run = str(folder / "a" / "runs" / "filtering" / "1.0-s0")
    cli.main(["evaluate", run, "--n-envs", "4"])
    assert "episodes that end on good" in capsys.readouterr().out


def test_the_true_reward_is_the_value_of_the_outcome(folder):
    task = own_task(Run(env=f"{folder}/doors:make_env", outcomes=("bad=-2", "good=3")).config())
    env = task.test_env(1)
    env.seed(0)
    env.reset()
    pays = []
    while 3.0 not in pays or -2.0 not in pays:
        _, rewards, _, _ = env.step([len(pays) // 12 % 2])
        pays.append(rewards[0])
    assert set(pays) == {0.0, 3.0, -2.0}


@pytest.mark.parametrize(
    ("space", "policy"),
    [
        (spaces.Box(-1, 1, (3,), np.float32), "RoutedActorCriticPolicy"),
        (spaces.Box(-1, 1, (3, 4, 2), np.float32), "RoutedActorCriticPolicy"),
        (spaces.Box(0, 5, (3, 4, 2), np.uint8), "RoutedActorCriticPolicy"),
        (spaces.Box(0, 255, (36, 36, 3), np.uint8), "RoutedCnnPolicy"),
        (spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32)}), "RoutedMultiInputPolicy"),
        (spaces.MultiDiscrete([2, 3]), "RoutedActorCriticPolicy"),
    ],
)
def test_networks_are_those_that_the_observations_need(folder, space, policy, monkeypatch):
    run = replace(Run(env=f"{folder}/doors:make_env", outcomes=("bad=-1", "good=1")), learner=TINY)
    task = own_task(run.config())
    monkeypatch.setattr(task, "make", lambda level: Pictures(space))
    model = make_model(run.config(), 0, task)
    assert type(model.policy).__name__ == policy
    symbolic = space == spaces.Box(0, 5, (3, 4, 2), np.uint8)
    assert (type(model.policy.features_extractor).__name__ == "SymbolicImageEncoder") == symbolic
    model.learn(64)


UNNAMED = lambda level: TwoDoors(level)  # noqa: E731
NAMED = "outcomes must be names with values, as in outcomes={'lava': -1, 'goal': 1}"
MISTAKES = {
    "env must have the form MODULE:FUNCTION, got 'doors'": {"env": "doors"},
    "there is no module 'dors'": {"env": "dors:make_env"},
    "has no 'make_evn'": {"env": "{}/doors:make_evn"},
    "must be a function, got int": {"env": "{}/doors:reward"},
    "must return a Gymnasium environment, got float": {"env": "{}/doors:make_number"},
    "failed when it was called with the oversight level 0.5: NameError": {"env": "{}/doors:make_vector"},
    "failed when it was called with the oversight level 0.0: AssertionError": {"env": "{}/doors:make_watched"},
    "the info of an episode's last step lacks 'outcome'": {"env": "{}/doors:make_silent"},
    "info['outcome'] must be one of": {"outcomes": {"good": 1}},
    "outcomes must give at least one outcome a value above 0, got {}": {"outcomes": {}},
    "outcomes must give at least one outcome a value above 0, got ['bad=-1']": {"outcomes": ["bad=-1"]},
    f"{NAMED}, got {{'good': nan}}": {"outcomes": {"good": float("nan")}},
    f"{NAMED}, got {{'good': '1'}}": {"outcomes": {"good": "1"}},
    f"{NAMED}, got {{1: 1}}": {"outcomes": {1: 1}},
    f"{NAMED}, got 'good'": {"outcomes": ["good", "bad"]},
    f"{NAMED}, got 'good=1 bad=-1'": {"outcomes": "good=1 bad=-1"},
    f"{NAMED}, got None": {"outcomes": None},
    f"{NAMED}, got 'good=1,bad=-1'": {"outcomes": ["good=1,bad=-1"]},
    "outcomes names 'good' twice": {"outcomes": ["good=1", "good=2"]},
    "unknown method 'rooting'": {"methods": ["rooting"]},
    "has no 'MIN'": {"methods": ["{}/doors:MIN"]},
    "must be a Method of routed_rl.rl, as in Method('value', modular=True), got 3": {"methods": ["{}/doors:reward"]},
    "doors:naive needs a name of its own, because 'naive' is that of": {"methods": ["{}/doors:naive"]},
    "method 'placebo' needs a world of cells": {"methods": ["placebo"]},
    "levels and focus must be above 0 and at most 1, got 2.0": {"levels": [2]},
    "levels must name at least one and each only once, got [0.5, 0.5]": {"levels": [0.5, 0.5]},
    "methods must name at least one and each only once, got []": {"methods": []},
    "focus must be one of the levels [0.5] unless controls are given, got 0.1": {"focus": 0.1},
    "doors:make_env' runs on the CPU; leave out device='cuda'": {"device": "cuda"},
    "total_steps must be at least 1, got 0": {"total_steps": 0},
    "parallel_seeds needs a batched world": {"parallel_seeds": 2, "seeds": 2},
    "use learner.networks='auto'": {"learner": replace(TINY, networks="symbolic")},
}


@pytest.mark.parametrize("message", MISTAKES)
def test_a_mistake_is_one_sentence_before_anything_runs(folder, message):
    options = {"env": "{}/doors:make_env", "outcomes": OUTCOMES, "learner": TINY, **SMALL, **MISTAKES[message]}
    options["env"] = options["env"].format(folder)
    options["methods"] = [name.format(folder) for name in options["methods"]]
    with pytest.raises(ValueError) as error:
        OversightStudy(out=folder / "study", **options).plan()
    text = str(error.value)
    assert message in text and "\n" not in text and "--" not in text and "goal=1" not in text
    assert not (folder / "study").exists()


@pytest.mark.parametrize(
    ("given", "quoted"),
    [
        (TwoDoors(), "TwoDoors object at"),
        (two_doors(), "DummyVecEnv object at"),
        (partial(TwoDoors, 0.5), "functools.partial("),
        (None, "got None"),
        (["doors:make_env"], "got ['doors:make_env']"),
    ],
)
def test_what_makes_no_environments_is_refused(given, quoted):
    with pytest.raises(ValueError, match=r"^env must be a function of a module, .* or its name 'MODULE:FUNCTION'") as e:
        OversightStudy(env=given, outcomes=OUTCOMES)
    assert quoted in str(e.value)
    is_one = isinstance(given, (gym.Env, VecEnv))
    assert str(e.value).endswith(": pass the function that makes it") == is_one and "\n" not in str(e.value)


def test_a_function_may_be_given_itself_but_not_one_that_processes_cannot_import(folder):
    assert OversightStudy(env=two_doors, outcomes=OUTCOMES).env.endswith("tests.rl.worlds:two_doors")

    def made(level):
        return TwoDoors(level)

    for function, message in {made: "made is defined in a function", UNNAMED: "a lambda has no name"}.items():
        with pytest.raises(ValueError, match=f"{message}.* the study's processes"):
            OversightStudy(env=function, outcomes=OUTCOMES)
    with pytest.raises(TypeError, match=r"'workers' is no option of the study but .* as in study.run\(workers=…\)"):
        study(folder, workers=1)
    with pytest.raises(TypeError, match=r"there is no option 'level'; .*did you mean 'levels'"):
        OversightStudy(env=two_doors, outcomes=OUTCOMES, level=[0.1])
    with pytest.raises(TypeError, match="use OversightReport"):
        OversightStudy({"routing": ["a"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--world", "trap"], "--world trap does not go with --env"),
        (["--preset", "quick"], "--preset quick does not go with --env"),
    ],
)
def test_a_command_refuses_what_does_not_go_with_env(folder, options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        line = ["oversight", "--env", f"{folder}/doors:make_env", "--outcomes", "good=1", "bad=-1", *options]
        cli.main([*line, "--out", str(folder / "study")])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and message in error and error.count("\n") == 1


@pytest.mark.usefixtures("undrawn")
def test_changed_code_is_another_study(folder):
    study(folder, methods=["naive"]).run()
    before = pd.read_csv(folder / "study" / "results.csv")
    (folder / "doors.py").write_text(MODULE + "\nnew = 1\n")
    forget(folder)
    with pytest.raises(ValueError, match=r"has results of other code, doors.py has changed"):
        study(folder, methods=["naive"]).run()
    pd.testing.assert_frame_equal(pd.read_csv(folder / "study" / "results.csv"), before)
    assert os.listdir(folder / "study" / "runs" / "naive")


def test_a_folder_of_model_save_is_evaluated_and_watched_like_a_run(folder, capsys):
    """In the user's environment, or in a world of this project."""
    model = RoutedPPO("MlpPolicy", two_doors(2), Overseer({"bad": -1, "good": 1}), n_steps=8, seed=0)
    model.save("mine")
    env = ["--env", "doors:make_seen"]
    cli.main(["evaluate", "mine", *env, "--n-envs", "4", "--steer", "good"])
    assert "episodes that end on good" in capsys.readouterr().out
    cli.main(["watch", "mine", *env, "--episodes", "1", "--gif", "film.gif"])
    assert (folder / "film.gif").stat().st_size
    small_model().save("ghosts")
    cli.main(["evaluate", "ghosts", "--n-envs", "4"])
    assert "episodes that end on ghost" in capsys.readouterr().out
    capsys.readouterr()
    model.ablate("bad")
    for path in ("ablated", "ablated.zip"):
        model.save(path)
        cli.main(["evaluate", path, *env, "--n-envs", "4"])
        assert 'policy: as saved: {"ablated": ["bad"]}' in capsys.readouterr().out
    for line, message in (
        (["evaluate", "mine"], "has the observation_space Box(0.0, 1.0, (6,), float32), but --world gridworld has"),
        (
            ["evaluate", "ghosts", "--world", "corner"],
            "knows the outcomes ghost, diamond, but --world corner",
        ),
        (["evaluate", "ghosts", *env], "has the observation_space Box"),
        (["watch", "mine", "--env", "doors:make_env"], "cannot be shown: let it return one with render_mode='ansi'"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(line)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1, error
