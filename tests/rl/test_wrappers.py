"""Wrappers around environments: training continues in them, evaluation sees through them, statistics are logged."""

import gymnasium as gym
import minigrid.wrappers
import numpy as np
import pytest
from gymnasium import wrappers
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

from routed_rl.envs import (
    DiamondGhostEnv,
    DiamondGhostTensorVecEnv,
    DiamondGhostVecEnv,
    MiniGridDiamondGhostEnv,
    PartialOversight,
    PartialOversightVecEnv,
    SymbolicImage,
)
from routed_rl.rl import Overseer, ParallelLearner, RoutedPPO, check_oversight_env, evaluate
from routed_rl.rl.env_state import STATE, environment_state, layers, restore_environment

from .test_ppo import learn
from .worlds import VALUES, TwoDoors, fingerprint, small_model, two_doors

WORLD = {"size": 3, "oversight": 0.5}
DOORS = Overseer({"bad": -1.0, "good": 1.0})


class Kept(TwoDoors):
    """TwoDoors with ``get_state`` and ``set_state``. Each episode starts in the next of three cells."""

    start = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=0)
        self.start = (self.start + 1) % 3
        self.position, self.overseen = 1 + self.start, self.start == 1
        return self._obs(), {}

    def get_state(self):
        return {name: getattr(self, name) for name in ("start", "position", "steps", "overseen")}

    def set_state(self, state):
        vars(self).update({name: array.item() for name, array in state.items()})


class Slider(Kept):
    """Kept with a continuous action."""

    action_space = gym.spaces.Box(-2, 2, (1,), np.float32)

    def step(self, action):
        return super().step(int(action[0] > 0))


class Picture(Kept):
    """Kept with an image as observation."""

    observation_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8)

    def _obs(self):
        return np.full((36, 36, 3), 50 * self.position, np.uint8)


DOOR = {
    "bad": lambda end: end.observation[0] == 1 or end.episode_return < -9,
    "good": lambda end: end.observation[4] == 1,
}


def world(num_envs=4):
    return DiamondGhostVecEnv(num_envs, **WORLD)


def rows(*wrap, env=Kept):
    """Return two environments in one vector environment, each in the wrappers ``wrap``, the first innermost."""

    def make():
        made = env()
        for each in wrap:
            made = each(made)
        return made

    return DummyVecEnv([make] * 2)


CONTINUED = {
    "no wrapper": world,
    "VecNormalize": lambda: VecNormalize(world()),
    "VecNormalize without observations": lambda: VecNormalize(world(), norm_obs=False),
    "three": lambda: VecMonitor(VecFrameStack(VecNormalize(world()), 2)),
    "two of a class": lambda: VecFrameStack(VecFrameStack(VecCheckNan(world()), 2), 3),
    "gymnasium.make": lambda: DummyVecEnv([lambda: gym.make("RoutedRL/DiamondGhost-v0", **WORLD)] * 2),
    "Monitor": lambda: rows(Monitor, env=lambda: DiamondGhostEnv(**WORLD)),
    "TimeLimit": lambda: rows(lambda env: wrappers.TimeLimit(env, 5), Monitor),
    "TimeAwareObservation": lambda: rows(lambda env: wrappers.TimeLimit(env, 5), wrappers.TimeAwareObservation),
    "DelayObservation": lambda: rows(lambda env: wrappers.DelayObservation(env, 2)),
    "FrameStackObservation": lambda: rows(lambda env: wrappers.FrameStackObservation(env, 3)),
    "NormalizeObservation": lambda: rows(wrappers.NormalizeObservation),
    "NormalizeReward": lambda: rows(wrappers.NormalizeReward, wrappers.RecordEpisodeStatistics),
    "Autoreset": lambda: rows(wrappers.Autoreset),
    "rewards": lambda: rows(lambda env: wrappers.ClipReward(env, -0.5, 0.5), lambda env: wrappers.RepeatAction(env, 2)),
    "actions": lambda: rows(lambda env: wrappers.RescaleAction(env, np.float32(-1), np.float32(1)), env=Slider),
    "choices": lambda: rows(lambda env: wrappers.DiscretizeAction(env, 3), env=Slider),
    "vectors": lambda: rows(
        lambda env: wrappers.RescaleObservation(env, np.float32(-1), np.float32(1)),
        lambda env: wrappers.DtypeObservation(env, np.float32),
        lambda env: wrappers.ReshapeObservation(env, (2, 3)),
        wrappers.FlattenObservation,
    ),
    "images": lambda: VecTransposeImage(rows(lambda env: wrappers.MaxAndSkipObservation(env, 2), env=Picture)),
    "grey images": lambda: rows(wrappers.GrayscaleObservation, env=Picture),
    "MiniGrid": lambda: VecTransposeImage(
        rows(minigrid.wrappers.ImgObsWrapper, env=lambda: MiniGridDiamondGhostEnv(**WORLD))
    ),
    "symbolic images": lambda: rows(SymbolicImage, env=lambda: MiniGridDiamondGhostEnv(**WORLD)),
    "partial oversight": lambda: rows(
        lambda env: PartialOversight(wrappers.TimeLimit(env, 5), DOOR, probability=0.5, visible=True), Monitor
    ),
    "partial oversight of a VecEnv": lambda: VecMonitor(
        PartialOversightVecEnv(
            VecNormalize(rows(), norm_obs=False), DOOR, probability={"bad": 0.3, "good": 0.6}, visible=True
        )
    ),
    "one of a dict": lambda: VecExtractDictObs(
        VecNormalize(
            VecFrameStack(
                rows(
                    lambda env: wrappers.FilterObservation(env, ["oversight", "image"]),
                    env=lambda: MiniGridDiamondGhostEnv(**WORLD),
                ),
                2,
            )
        ),
        "oversight",
    ),
}


def model_in(env, **options):
    outcomes = set(VALUES) if env.has_attr("world") else {"bad", "good"}
    overseer = Overseer(VALUES) if outcomes == set(VALUES) else DOORS
    return small_model(env, overseer=overseer, n_steps=6, n_epochs=1, replay_steps=1, **options)


@pytest.mark.parametrize("name", CONTINUED)
def test_training_continues_under_any_wrapper_as_if_it_had_never_stopped(name, tmp_path):
    make, steps = CONTINUED[name], 2 * 6 * CONTINUED[name]().num_envs
    unbroken, broken = model_in(make()), model_in(make())
    logged = learn(unbroken, steps) + learn_on(unbroken, steps)
    kept = learn(broken, steps)
    broken.save(tmp_path / "model")
    resumed = RoutedPPO.load(tmp_path / "model", env=make(), device="cpu", force_reset=False)
    assert kept + learn_on(resumed, steps) == logged
    assert fingerprint(resumed) == fingerprint(unbroken)


def learn_on(model, steps):
    return learn(model, steps, reset_num_timesteps=False)


def test_every_wrapper_whose_state_is_known_is_continued_above():
    continued = {type(layer) for make in CONTINUED.values() for layer in layers(make())}
    known = {kind for kind in STATE if issubclass(kind, (gym.Wrapper, VecEnvWrapper))}
    assert known <= continued


class Elsewhere(VecEnv):
    """Single environments that cannot be reached, as in other processes."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__(inner.num_envs, inner.observation_space, inner.action_space)

    def _pass(name):
        return lambda self, *given, **options: getattr(self.inner, name)(*given, **options)

    close, get_attr, set_attr, env_method, env_is_wrapped, reset, seed, step_async, step_wait = map(
        _pass,
        ("close", "get_attr", "set_attr", "env_method", "env_is_wrapped", "reset", "seed", "step_async", "step_wait"),
    )


class Counting(gym.Wrapper):
    """A user's wrapper with state."""

    def __init__(self, env):
        super().__init__(env)
        self.count = 0

    def step(self, action):
        self.count += 1
        return super().step(action)


class Declared(Counting):
    """A user's wrapper that names its state itself."""

    state_attributes = ("count",)


class Heir(Declared):
    """A subclass may have more state."""


class Noted(VecMonitor):
    """A user's subclass of a known wrapper."""


REFUSED = {
    "no get_state": (two_doors, "environment TwoDoors has no get_state"),
    "unknown": (lambda: rows(Counting, Monitor), "wrapper Counting is unknown, it has the attributes count:"),
    "random": (lambda: rows(lambda env: wrappers.StickyAction(env, 0.5)), "wrapper StickyAction is unknown"),
    "a user's function": (
        lambda: rows(lambda env: wrappers.TransformReward(env, lambda reward: 2 * reward)),
        "wrapper TransformReward is unknown, it has the attributes func:",
    ),
    "subclass of a wrapper that names its state": (lambda: rows(Heir), "wrapper Heir is unknown"),
    "subclass": (lambda: Noted(world()), "wrapper Noted is unknown"),
    "not reached": (lambda: Elsewhere(rows(Monitor)), "other processes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_training_does_not_continue_under_a_wrapper_whose_state_is_unknown(name, tmp_path):
    make, message = REFUSED[name]
    model = model_in(make())
    model.learn(60)
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{message}.*or load with force_reset=True") as error:
        RoutedPPO.load(tmp_path / "model", env=make(), device="cpu", force_reset=False)
    assert "\n" not in str(error.value)
    RoutedPPO.load(tmp_path / "model", env=make(), device="cpu").learn(60, reset_num_timesteps=False)


def test_environments_that_cannot_be_reached_but_have_no_wrappers_continue(tmp_path):
    unbroken, broken = model_in(Elsewhere(rows())), model_in(Elsewhere(rows()))
    unbroken.learn(36).learn(36, reset_num_timesteps=False)
    broken.learn(36).save(tmp_path / "model")
    resumed = RoutedPPO.load(tmp_path / "model", env=Elsewhere(rows()), device="cpu", force_reset=False)
    assert fingerprint(resumed.learn(36, reset_num_timesteps=False)) == fingerprint(unbroken)


@pytest.mark.parametrize(
    ("saved", "loaded", "message"),
    [
        (lambda: VecNormalize(world()), world, "saved in VecNormalize, got no wrapper"),
        (world, lambda: VecMonitor(VecNormalize(world())), "saved in no wrapper, got VecMonitor/VecNormalize"),
        (lambda: VecNormalize(world()), lambda: VecNormalize(world(), norm_obs=False), "saved with .*obs_rms.mean"),
        (world, lambda: world(3), "saved with 4 environments, got 3: use 4"),
        (lambda: Noted(world()), world, "was not saved"),
    ],
)
def test_training_does_not_continue_in_another_environment(saved, loaded, message, tmp_path):
    model_in(saved()).learn(72).save(tmp_path / "model")
    with pytest.raises(ValueError, match=f"{message}.*force_reset=True"):
        RoutedPPO.load(tmp_path / "model", env=loaded(), device="cpu", force_reset=False)


def test_a_loaded_model_knows_its_vecnormalize(tmp_path):
    model_in(VecNormalize(world())).save(tmp_path / "model")
    env = VecNormalize(world())
    assert RoutedPPO.load(tmp_path / "model", env=env, device="cpu").get_vec_normalize_env() is env


# --- evaluation -----------------------------------------------------------------------------------


def normalisers(env):
    """Return everything in the state of ``env`` that belongs to a wrapper that normalises, and its switches."""
    numbers = {name: array for name, array in environment_state(env).items() if "_rms" in name}
    switches = [
        {name: value for name, value in vars(layer).items() if name in ("training", "norm_reward")}
        for layer in layers(env)
    ]
    return {name: array.tobytes() for name, array in numbers.items()}, switches


@pytest.mark.parametrize(
    "name", ["VecNormalize", "VecNormalize without observations", "three", "NormalizeObservation", "one of a dict"]
)
def test_evaluation_reports_true_rewards_and_moves_no_statistics(name):
    env = CONTINUED[name]()
    model = model_in(env)
    model.learn(72)
    before = normalisers(env)
    assert before[0]
    result = evaluate(model, env, seed=1, n_episodes=8)
    check_oversight_env(env, model.overseer.outcomes)
    good, bad = reversed(model.overseer.outcomes)
    assert result["episode_return"] == pytest.approx(result["outcomes"][good] - result["outcomes"][bad])
    assert normalisers(env) == before


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (lambda: rows(wrappers.NormalizeReward), "true rewards.*NormalizeReward: use VecNormalize"),
        (lambda: Elsewhere(rows(wrappers.NormalizeObservation)), "NormalizeObservation in another process"),
    ],
)
def test_evaluation_refuses_what_it_cannot_see_through(env, message):
    model = model_in(env())
    with pytest.raises(ValueError, match=message):
        evaluate(model, env())


def test_an_episode_that_a_wrapper_cuts_has_reached_nothing():
    env = rows(lambda env: wrappers.TimeLimit(env, 1))
    check_oversight_env(env, DOORS.outcomes)
    shares = evaluate(model_in(env), env)["outcomes"]
    assert shares["none"] > 0 and sum(shares.values()) == 1


# --- statistics of episodes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: VecMonitor(world()),
        lambda: VecNormalize(VecMonitor(world())),
        lambda: rows(Monitor, env=lambda: DiamondGhostEnv(**WORLD)),
        lambda: rows(wrappers.RecordEpisodeStatistics, env=lambda: DiamondGhostEnv(**WORLD)),
    ],
)
def test_statistics_of_episodes_are_logged_as_in_stable_baselines3(make, tmp_path):
    model = model_in(make(), stats_window_size=7)
    last = learn(model, 360)[-1]
    episodes = list(model.ep_info_buffer)
    assert len(episodes) == 7 and {episode["r"] for episode in episodes} <= {-1.0, 0.0, 1.0}
    assert last["rollout/ep_rew_mean"] == pytest.approx(np.mean([episode["r"] for episode in episodes]))
    assert last["rollout/ep_len_mean"] == pytest.approx(np.mean([episode["l"] for episode in episodes]))
    model.save(tmp_path / "model")
    loaded = RoutedPPO.load(tmp_path / "model", device="cpu").ep_info_buffer
    assert [(e["r"], e["l"]) for e in loaded] == [(e["r"], e["l"]) for e in episodes] and loaded.maxlen == 7


class Successful(TwoDoors):
    def step(self, action):
        *result, info = super().step(action)
        return (*result, {**info, "is_success": info["outcome"] == "good"} if info else {})


def test_the_success_rate_is_logged():
    model = model_in(DummyVecEnv([Successful] * 4))
    rate = learn(model, 360)[-1]["rollout/success_rate"]
    assert 0 < rate < 1 and rate == pytest.approx(np.mean(model.ep_success_buffer))


# --- learners that bypass wrappers ----------------------------------------------------------------


def test_a_tensor_environment_and_parallel_learners_refuse_wrappers():
    with pytest.raises(ValueError, match="an environment of tensors cannot have a wrapper, got VecMonitor"):
        model_in(VecMonitor(DiamondGhostTensorVecEnv(4, "cpu", **WORLD)))
    with pytest.raises(ValueError, match="no wrapper, got VecNormalize"):
        ParallelLearner([model_in(VecNormalize(world()))], [world()])
    with pytest.raises(ValueError, match="no wrapper, got VecMonitor"):
        ParallelLearner([model_in(world())], [VecMonitor(world())])


def test_a_wrapper_may_name_its_state_itself():
    env, other = rows(Declared), rows(Declared)
    env.reset()
    env.step([0, 1])
    assert environment_state(env)["0/Declared:count"] == 1
    restore_environment(other, environment_state(env))
    assert [each.count for each in other.envs] == [1, 1]


def test_a_restored_state_is_the_saved_one_and_shares_no_memory():
    env, other = CONTINUED["three"](), CONTINUED["three"]()
    env.reset()
    restore_environment(other, environment_state(env))
    before = {name: array.copy() for name, array in environment_state(env).items()}
    other.step(np.zeros(4, dtype=np.int64))
    assert all((before[name] == array).all() for name, array in environment_state(env).items())
