"""Every constructor argument of Stable-Baselines3's PPO and policy is used by ours, or refused at once in one line."""

import inspect
import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import FloatSchedule, LinearSchedule

from routed_rl.envs import DiamondGhostEnv, DiamondGhostTensorVecEnv, DiamondGhostVecEnv
from routed_rl.rl import Overseer, RoutedActorCriticPolicy, RoutedPPO, RoutedREINFORCE
from routed_rl.rl.networks import MlpEncoder
from routed_rl.runs import CheckpointError

from .worlds import VALUES, TwoDoors, fingerprint, refused

LEARNERS = (RoutedPPO, RoutedREINFORCE)
LINEAR = LinearSchedule(0.3, 0.1, 1.0)


def make(kind=RoutedPPO, policy="MlpPolicy", env=None, overseer=None, **options):
    env = DiamondGhostVecEnv(8, oversight=0.5) if env is None else env
    defaults = {"seed": 0, "device": "cpu", "n_steps": 8, "replay_steps": 1, "replay_batch": 4, "replay_capacity": 16}
    defaults["policy_kwargs"] = {"hidden": (4,), "value_hidden": (4,)}
    return kind(policy, env, overseer or Overseer(VALUES), **defaults | options)


def trained(*given, **options):
    model = make(*given, **options)
    model.learn(2 * 64)
    return model


@pytest.fixture(scope="module", params=LEARNERS)
def plain(request):
    """A learner and the bytes of a model that it trained with its defaults."""
    return request.param, fingerprint(trained(request.param))


def names(callable_):
    return set(inspect.signature(callable_).parameters) - {"self"}


# Argument → values that train another model than the default does, and are kept by save().
USED = {
    "learning_rate": [0.1, LINEAR, FloatSchedule(0.1)],
    "n_steps": [4],
    "batch_size": [16],
    "n_epochs": [3],
    "gamma": [0.5],
    "gae_lambda": [0.5],
    "clip_range": [1e-3, LinearSchedule(1e-3, 1e-4, 1.0)],
    "clip_range_vf": [1e-3, LinearSchedule(1e-3, 1e-4, 1.0)],
    "normalize_advantage": [True],
    "target_kl": [1e-9],
    "ent_coef": [0.7, LINEAR],
    "vf_coef": [3.0],
    "gate_coef": [3.0],
    "max_grad_norm": [1e-3],
    "bootstrap": [True, False],
    "unfinished": ["hold"],
    "replay_steps": [2],
    "replay_batch": [3],
    "replay_capacity": [5],
    "solo": [0.5],
    "policy_kwargs": [{"hidden": [5], "value_hidden": [4]}],
    "seed": [1],
}
PPO_ONLY = {"clip_range": 0.2, "clip_range_vf": 0.2, "normalize_advantage": True, "target_kl": 0.1}
# These change no weights; the other tests of this file, of test_wrappers.py and test_sde.py show that they are used.
ELSEWHERE = {"policy", "env", "overseer", "device", "verbose", "stats_window_size", "tensorboard_log"}
ELSEWHERE |= {"use_sde", "sde_sample_freq"}
REFUSED = {
    "rollout_buffer_class": FlattenExtractor,
    "rollout_buffer_kwargs": {"a": 1},
    "made_up": 1,
}


def test_the_tables_name_every_argument():
    ours = set().union(*(names(kind) for kind in (*LEARNERS, RoutedPPO.__mro__[1])))
    theirs = names(PPO) | ours - {"kwargs", "unknown"} | {"made_up"}
    assert set(USED) | ELSEWHERE | set(REFUSED) | {"_init_setup_model"} == theirs


def test_every_argument_is_used_and_kept(plain, tmp_path):
    kind, before = plain
    for number, (name, values) in enumerate(USED.items()):
        if name in PPO_ONLY and kind is RoutedREINFORCE:
            continue  # refused, as below
        prints = []
        base = [] if name == "bootstrap" else [before]
        for value in values:
            model = trained(kind, **{name: value})
            prints.append(fingerprint(model))
            model.save(tmp_path / f"{number}")
            again = getattr(kind.load(tmp_path / f"{number}", device="cpu"), name)
            again = {k: v for k, v in again.items() if k in value} if isinstance(value, dict) else again
            same = [(each(1.0), each(0.3)) if callable(each) else each for each in (value, again)]
            # A constant may be given as a schedule, and come back as one.
            assert same[0] == same[1] or same in ([(again, again), again], [value, (value, value)]), name
        assert all(a != b for a, b in itertools.combinations(base + prints, 2) if name != "learning_rate"), name
        assert all(base != [each] for each in prints), name


def test_an_argument_that_is_not_used_is_refused():
    cases = [(kind, {name: value}) for kind in LEARNERS for name, value in REFUSED.items()]
    others = [(RoutedREINFORCE, {name: value}) for name, value in PPO_ONLY.items()]
    for kind, options in [*cases, *others]:
        refused(lambda kind=kind, options=options: make(kind, **options), *options, kind.__name__)
    make(rollout_buffer_class=None, rollout_buffer_kwargs=None)


def test_a_misspelt_argument_is_named_with_the_nearest():
    for kind in LEARNERS:
        for name in sorted(USED.keys() - (PPO_ONLY if kind is RoutedREINFORCE else {})):
            error = refused(lambda kind=kind, name=name: make(kind, **{f"{name[:-1]}": 1}), f"{name[:-1]}, got 1; did")
            assert f"{name!r}" in error or name[:-1] in USED, error


NUMBERS = ("x", None, float("nan"), -1, [1], True)
WRONG = {
    "learning_rate": (*NUMBERS, float("inf"), lambda left: -left, lambda left: "x", LinearSchedule(1.0, -1.0, 1.0)),
    "ent_coef": (*NUMBERS, lambda left: left - 1),
    "clip_range": (*NUMBERS, lambda left: left - 1),
    "clip_range_vf": ("x", float("nan"), -1, [1], True, 0),
    "target_kl": ("x", float("nan"), -1, LINEAR),
    "normalize_advantage": (None, 1),
    **dict.fromkeys(("gamma", "gae_lambda", "solo", "vf_coef", "gate_coef"), (*NUMBERS, LINEAR)),
    **dict.fromkeys(("n_steps", "n_epochs", "replay_batch", "replay_capacity"), (*NUMBERS, 1.5, 0, LINEAR)),
    "stats_window_size": (*NUMBERS, 1.5, 0),
    "replay_steps": (*NUMBERS, 1.5),
    "batch_size": ("x", 0, 1.5, True),
    "max_grad_norm": ("x", float("nan"), -1, LINEAR),
    "seed": ("x", -1, 1.5, 2**32),
    "verbose": ("x", 3, None),
    "bootstrap": ("no", None, 1),
    "unfinished": ("drop", None),
    "device": ("gpu", 1.5),
    "tensorboard_log": (5,),
    "policy_kwargs": ("x", [1], {"modules": ("a",)}, {"learned_gate": True}, {"use_sde": False}),
    "policy": ("CnnPolicy", ActorCriticPolicy, None, 5),
    "overseer": ("routing", 5),
    "env": (5, gym.make_vec("CartPole-v1", num_envs=1)),
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_value_that_would_fail_later_is_refused_by_name(kind):
    for name, values in WRONG.items():
        for value in values if kind is RoutedPPO or name not in PPO_ONLY else ():
            refused(lambda name=name, value=value: make(kind, **{name: value}), name)
    refused(lambda: kind("MlpPolicy", None, Overseer(VALUES)), "env", "None")


def test_what_cannot_be_saved_is_refused_before_training():
    class Unregistered(RoutedActorCriticPolicy):
        pass

    refused(lambda: make(policy=Unregistered), "policy", "routed_rl.rl.encoding.CLASSES['Unregistered'] = Unregistered")
    extractor = {"features_extractor_class": type("A", (), {})}
    refused(lambda: make(policy_kwargs=extractor), "policy_kwargs.features_extractor_class", "CLASSES['A'] = A")
    refused(lambda: make(policy_kwargs={"optimizer_class": torch.optim.LBFGS}), "optimizer_class=LBFGS", "use another")
    given = {"features_extractor_class": MlpEncoder, "features_extractor_kwargs": {"sizes": object()}}
    refused(lambda: make(policy_kwargs=given), "policy_kwargs.features_extractor_kwargs.sizes", "use numbers")


def test_a_mistake_in_the_call_is_one_sentence(tmp_path):
    env, overseer = DiamondGhostVecEnv(8), Overseer(VALUES)
    refused(lambda: RoutedPPO("MlpPolicy", env, VALUES), "overseer must be an Overseer, as in Overseer({", "'ghost'")
    refused(lambda: RoutedPPO("MlpPolicy", overseer, env), "env is the second argument", "'routing'", "swap them")
    refused(lambda: RoutedPPO(env, "MlpPolicy", overseer), "policy is the first argument", "DiamondGhost", "swap them")
    refused(lambda: RoutedPPO("Mlp", env, overseer), "policy must be one of 'MlpPolicy'", "got 'Mlp'")
    several = ([DiamondGhostEnv] * 2, gym.vector.SyncVectorEnv([DiamondGhostEnv] * 2))
    for envs in several:
        refused(lambda envs=envs: RoutedPPO("MlpPolicy", envs, overseer), "env must be", "DummyVecEnv([make_env] * 16)")
    model = make()
    model.save(tmp_path / "model")
    loaded = RoutedPPO.load(tmp_path / "model", device="cpu")
    refused(lambda: loaded.learn(10), "learn() needs an environment", "set_env(env)")
    refused(lambda: model.learn("many"), "total_timesteps", "'many'")
    swapped = "path is the first argument of load() and env the second"
    refused(lambda: RoutedPPO.load(env, tmp_path / "model"), swapped, "DiamondGhostVecEnv", "swap them")
    refused(lambda: RoutedPPO.load(tmp_path / "model", learning_rat=1), "learning_rat", "did you mean 'learning_rate'?")
    refused(lambda: model.save(3), "path must be a path, or a file that is open", "3")
    refused(lambda: RoutedPPO.load(tmp_path / "model", custom_objects=["gamma"]), "custom_objects", "['gamma']")
    assert RoutedPPO.load(tmp_path / "model", custom_objects={"gamma": 0.5}, device="cpu").gamma == 0.5


@pytest.mark.parametrize(
    "changed",
    [
        {"observation_space": gym.spaces.Dict({"a": gym.spaces.Dict({"b": gym.spaces.Box(0, 1, (6,))})})},
        {"observation_space": gym.spaces.Tuple([gym.spaces.Discrete(2)])},
        {"observation_space": gym.spaces.Discrete(6, start=1)},
        {"observation_space": gym.spaces.MultiDiscrete([[2, 3], [3, 2]])},
        {"action_space": gym.spaces.Tuple([gym.spaces.Discrete(2)])},
        {"action_space": gym.spaces.MultiDiscrete([[2, 3], [3, 2]])},
        {"action_space": gym.spaces.MultiBinary([2, 3])},
        {"action_space": gym.spaces.Box(-np.inf, 1, (2,))},
    ],
)
def test_spaces_that_cannot_be_learned_are_refused(changed):
    kind = type("Spaced", (TwoDoors,), changed)
    refused(lambda: make(env=kind(), overseer=Overseer({"bad": -1, "good": 1})))


def test_an_environment_on_another_device_is_refused_at_once():
    env = DiamondGhostTensorVecEnv(2, "meta")
    with pytest.raises(ValueError, match=r"one device.*meta.*cpu"):
        make(env=env)


def test_arguments_that_change_no_weights_are_used(tmp_path, capsys):
    make(env="RoutedRL/DiamondGhost-v0").learn(8)
    model = make(verbose=1, stats_window_size=7, tensorboard_log=tmp_path / "logs", device=torch.device("cpu"))
    assert "Using cpu device" in capsys.readouterr().out
    model.learn(64)
    assert list((tmp_path / "logs").rglob("events.*"))
    model.save(tmp_path / "model")
    loaded = RoutedPPO.load(tmp_path / "model", env=gym.make("RoutedRL/DiamondGhost-v0"), device="cpu")
    assert (loaded.verbose, loaded.stats_window_size) == (1, 7)
    assert loaded.learn(8).ep_info_buffer.maxlen == 7


# --- set_parameters -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LEARNERS)
def test_parameters_are_set_from_a_checkpoint_as_from_a_dict(kind, tmp_path):
    source = trained(kind)
    source.save(tmp_path / "model")
    for given in (tmp_path / "model", str(tmp_path / "model.zip"), source.get_parameters()):
        target = trained(kind, seed=1)
        target.set_parameters(given)
        ours, theirs = fingerprint(target), fingerprint(source)
        names = [name for name in theirs if name.startswith(("policy.", "optimizer."))]
        assert names and all(ours[name] == theirs[name] for name in names)
        target.learn(64)


def test_parameters_of_another_model_are_refused(tmp_path):
    make().save(tmp_path / "model")
    turned = make(overseer=Overseer(dict(reversed(VALUES.items()))))
    with pytest.raises(
        CheckpointError, match=r"model has the modules \['ghost', 'diamond'\], the model has \['diamond'"
    ):
        turned.set_parameters(tmp_path / "model")
    with pytest.raises(CheckpointError, match="another architecture"):
        make(policy_kwargs={"hidden": (9,)}).set_parameters(tmp_path / "model")
    with pytest.raises(CheckpointError, match="missing"):
        make().set_parameters(tmp_path / "missing")
