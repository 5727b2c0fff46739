"""Every constructor argument of Stable-Baselines3's PPO and policy is used by ours, or refused at once in one line."""

import contextlib
import inspect
import io
import itertools
import sys
import tempfile
import types
import warnings
import zipfile
from functools import partial

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
from routed_rl.rl.encoding import SCHEDULES, decode, encode
from routed_rl.rl.networks import MlpEncoder
from routed_rl.rl.saving import COUNTERS, constructor_meta
from routed_rl.runs import CheckpointError
from routed_rl.runs.packed import write_anywhere

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


def learned(model):
    """The bytes of everything but the environment's state."""
    return {name: data for name, data in fingerprint(model).items() if not name.startswith(("env.", "last_obs"))}


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


class Renamed:
    def __init__(self, start):
        self.begin = start

    def __call__(self, left):
        return self.begin * left


class Doubled:
    def __init__(self, start):
        self.start = 2 * start

    def __call__(self, left):
        return self.start * left


def test_a_schedule_that_loading_could_not_build_again_is_refused(monkeypatch):
    assert make(ent_coef=Renamed(0.1)).ent_coef(0.5) == 0.05  # its values are saved
    for kind, attribute in ((Renamed, "begin"), (Doubled, "start")):
        monkeypatch.setitem(SCHEDULES, kind.__name__, kind)
        refused(lambda kind=kind: make(ent_coef=kind(0.1)), "ent_coef", f"its attributes, which are {attribute}")


def decaying(left):
    return 0.3 * left**2 + 0.01


@pytest.mark.parametrize("name", ["learning_rate", "ent_coef", "clip_range", "clip_range_vf"])
@pytest.mark.parametrize("function", [decaying, lambda left: 0.3 * left, partial(pow, 0.3)])
def test_of_a_function_as_a_schedule_values_are_saved(name, function, tmp_path):
    model = make(**{name: function})
    model.learn(128)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match=f"as {name}.* give it again, as in RoutedPPO.load.*{name}=") as warned:
        loaded = RoutedPPO.load(tmp_path / "model", device="cpu")
    assert (function is decaying) == (f"decaying as {name}" in str(warned[0].message))
    for step in range(1001):
        assert getattr(loaded, name)(step / 1000) == pytest.approx(function(step / 1000), abs=1e-12)
    for progress in (0.31415, 0.0005, 1.7, -0.3):
        known = function(min(max(progress, 0.0), 1.0))
        assert getattr(loaded, name)(progress) == pytest.approx(known, abs=1e-6)
    loaded.save(tmp_path / "again")
    with pytest.warns(UserWarning, match=name):
        again = RoutedPPO.load(tmp_path / "again", device="cpu")
    assert getattr(again, name)(0.31415) == getattr(loaded, name)(0.31415)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for given in ({name: function}, {"custom_objects": {name: function}}):
            loaded = RoutedPPO.load(tmp_path / "model", device="cpu", **given)
            assert getattr(loaded, name)(0.31415) == function(0.31415) and learned(loaded) == learned(model)
        model.save(tmp_path / "without", exclude=[name])
        RoutedPPO.load(tmp_path / "without", device="cpu")


def test_all_functions_are_named_at_once(tmp_path):
    make(learning_rate=decaying, clip_range=decaying).save(tmp_path / "model")
    with pytest.warns(UserWarning, match=r"decaying as clip_range, decaying as learning_rate.*clip_range=…, learn"):
        RoutedPPO.load(tmp_path / "model", device="cpu")


def test_a_function_that_gives_no_number_on_the_way_is_refused():
    refused(lambda: make(learning_rate=lambda left: "x" if left == 0.5 else left), "learning_rate", "could not convert")
    refused(lambda: make(ent_coef=lambda left: float("nan") if left == 0.25 else left), "ent_coef", "progress 0.25")


class Imported(RoutedActorCriticPolicy):
    pass


class OwnExtractor(FlattenExtractor):
    pass


class Outside:
    class Nested(OwnExtractor):
        pass


class OtherModule(torch.nn.ReLU):
    def __init__(self, *args, **kwargs):
        raise AssertionError("loading must not make this")


CRAFTED = (
    *("subprocess:Popen", "os:system", "builtins:eval", "builtins:dict", "torch:load", f"{__name__}:decaying"),
    *("torch.nn:Linear", f"{__name__}:OtherModule", f"{__name__}:Nowhere", f"{__name__}:", ":", "", "nowhere:A"),
)
"""Names of classes and functions that a checkpoint must not reach."""


def test_classes_of_ones_own_are_saved_by_module_and_name(tmp_path, monkeypatch):
    model = make(policy=Imported, policy_kwargs={"features_extractor_class": OwnExtractor})
    model.save(tmp_path / "model.zip")
    loaded = RoutedPPO.load(tmp_path / "model.zip", device="cpu")
    assert type(loaded.policy) is Imported and type(loaded.policy.features_extractor) is OwnExtractor
    assert decode(encode("x", Outside.Nested)) is Outside.Nested
    monkeypatch.delitem(sys.modules, __name__)
    with pytest.raises(CheckpointError, match="which is not known here: before you load it, import your class"):
        RoutedPPO.load(tmp_path / "model.zip", device="cpu")
    assert __name__ not in sys.modules


@pytest.mark.parametrize("kind", ["class", "schedule"])
@pytest.mark.parametrize("place", CRAFTED)
def test_a_crafted_checkpoint_reaches_no_other_code(kind, place):
    for crafted in ({kind: place}, {"nested": [{kind: place, "in_features": 3, "out_features": 3}]}):
        with pytest.raises(CheckpointError, match=f"the checkpoint names the {kind} '{place}', which is not known"):
            decode(crafted)


def test_looking_up_a_class_runs_no_code_of_its_module(monkeypatch):
    class Lazy(types.ModuleType):
        def __getattr__(self, name):
            raise AssertionError(name)

    monkeypatch.setitem(sys.modules, "lazy", Lazy("lazy"))
    with pytest.raises(CheckpointError, match="the class 'lazy:Model', which is not known"):
        decode({"class": "lazy:Model"})


@pytest.mark.parametrize("values", [[], [1.0], ["a", "b"], [True, False], "ab", None])
def test_a_crafted_table_is_refused(values, tmp_path):
    model = make(learning_rate=decaying)
    meta = constructor_meta(model) | {"counters": dict.fromkeys(COUNTERS, 0), "steering": {}}
    meta["arguments"]["learning_rate"]["values"] = values
    write_anywhere(tmp_path / "model", {}, meta)
    with pytest.raises(CheckpointError, match="does not describe a RoutedPPO"):
        RoutedPPO.load(tmp_path / "model", device="cpu")


def test_one_file_holds_the_checkpoint_of_the_directory(tmp_path):
    model = trained()
    model.save(tmp_path / "model")
    model.save(tmp_path / "deep" / "model.zip")
    with (tmp_path / "opened").open("wb") as file:
        model.save(file)
        assert not file.closed
    packed = (tmp_path / "opened").read_bytes()
    assert packed == (tmp_path / "deep" / "model.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "opened") as archive:
        assert archive.testzip() is None
        archive.extractall(tmp_path / "unpacked")
    places = ("opened", "unpacked", "model.zip", "deep/model.zip", "deep/model")
    for source in (io.BytesIO(packed), *(tmp_path / place for place in places)):
        assert learned(RoutedPPO.load(source, device="cpu")) == learned(model)
    for place in range(0, len(packed), len(packed) // 97):
        with pytest.raises(CheckpointError, match="cannot be used"):
            RoutedPPO.load(io.BytesIO(packed[:place]), device="cpu")
    for kept, other in (("meta.json", b"{}"), ("meta.json", None), ("evil", b"")):
        edited = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(packed)) as source, zipfile.ZipFile(edited, "w") as target:
            files = {each: source.read(each) for each in source.namelist()} | {kept: other}
            for each, data in files.items():
                if data is not None:
                    target.writestr(each, data)
        refused(lambda edited=edited: RoutedPPO.load(edited), "BytesIO", "cannot be used")
    header = packed.index(b"PK\x01\x02")
    for place in range(header, header + 46):  # of the first file in the archive's list
        for bit in (1, 0x20, 0x40, 0x80):
            damaged = io.BytesIO(packed[:place] + bytes([packed[place] ^ bit]) + packed[place + 1 :])
            with contextlib.suppress(CheckpointError):
                assert learned(RoutedPPO.load(damaged, device="cpu")) == learned(model)
    with zipfile.ZipFile(io.BytesIO(packed)) as source, zipfile.ZipFile(tmp_path / "small.zip", "w", 8) as target:
        for each in source.namelist():
            target.writestr(each, source.read(each))
    refused(lambda: RoutedPPO.load(tmp_path / "small.zip"), "small.zip", "it is compressed")
    for wrong in (io.StringIO(), (tmp_path / "text").open("w"), (tmp_path / "opened").open()):
        refused(lambda wrong=wrong: model.save(wrong), "open for bytes")
        refused(lambda wrong=wrong: RoutedPPO.load(wrong), "open for bytes")
        wrong.close()
        refused(lambda wrong=wrong: model.save(wrong), "open for bytes")
    with (tmp_path / "opened").open("rb") as file:
        refused(lambda: model.save(file), "open for bytes, as by open(…, 'wb')")
    with tempfile.NamedTemporaryFile() as file:
        model.save(file)
        file.seek(0)
        assert learned(RoutedPPO.load(file, device="cpu")) == learned(model)


@pytest.mark.parametrize("name", ["model.zip", "model.pkl"])
def test_a_file_that_is_no_checkpoint_is_not_overwritten(name, tmp_path):
    model = make()
    saved = model if name == "model.zip" else model.policy
    saved.save(tmp_path / name)
    saved.save(tmp_path / name)
    (tmp_path / name).write_bytes(b"PK mine")
    refused(lambda: saved.save(tmp_path / name), name, "is not overwritten: choose another path")
    assert (tmp_path / name).read_bytes() == b"PK mine" and [*tmp_path.iterdir()] == [tmp_path / name]
    refused(lambda: type(saved).load(tmp_path / name), name, "wasn't a zip-file")


def test_a_directory_stays_a_directory_and_an_empty_file_is_replaced(tmp_path):
    model = make()
    model.save(tmp_path / "old")
    (tmp_path / "old").rename(tmp_path / "m.pt")
    (tmp_path / "new.zip").touch()
    for name in ("m.pt", "new.zip"):
        model.save(tmp_path / name)
        assert (tmp_path / name).is_dir() == (name == "m.pt")
        assert learned(RoutedPPO.load(tmp_path / name, device="cpu")) == learned(model)
    model.save(tmp_path / "LOUD.ZIP")
    assert (tmp_path / "LOUD.ZIP").is_file()


def test_what_a_killed_writer_left_comes_before_a_file_of_the_same_name(tmp_path):
    first, second = make(seed=1), make(seed=2)
    first.save(tmp_path / "m")
    second.save(tmp_path / "m.zip")
    assert RoutedPPO.load(tmp_path / "m", device="cpu").seed == 1
    (tmp_path / "m").rename(tmp_path / ".m.previous")
    assert RoutedPPO.load(tmp_path / "m", device="cpu").seed == 1
    (tmp_path / "m.zip").unlink()
    assert RoutedPPO.load(tmp_path / "m.zip", device="cpu").seed == 1


class OwnStep(torch.optim.SGD):
    def step(self):
        return super().step()


def test_an_optimizer_of_ones_own_may_have_a_step_without_arguments(tmp_path):
    make(policy_kwargs={"optimizer_class": OwnStep}).learn(64)
    refused(lambda: make(policy_kwargs={"optimizer_class": "Adam"}), "optimizer_class must be a class", "'Adam'")


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
