"""Every argument of Stable-Baselines3's policy is used by ours, or refused at once in one line; a policy is saved."""

import inspect

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from routed_rl.rl import PaperPolicy, RoutedActorCriticPolicy
from routed_rl.rl.encoding import CLASSES
from routed_rl.rl.networks import MlpEncoder
from routed_rl.runs import CheckpointError

from .worlds import refused, small_model

# Argument → values that build another network or optimizer than the default does.
POLICY_USED = {
    "modules": [("ghost",)],
    "hidden": [(5,)],
    "value_hidden": [(5,)],
    "activation": ["tanh"],
    "net_arch": [[5], {"pi": [5]}],
    "activation_fn": [torch.nn.Tanh],
    "learned_gate": [False],
    "encoder": [(3,)],
    "ortho_init": [False],
    "features_extractor_class": [MlpEncoder],
    "optimizer_class": [torch.optim.AdamW, torch.optim.SGD],
    "optimizer_kwargs": [{"weight_decay": 0.1}],
}
POLICY_REFUSED = {
    "use_sde": [True],
    "full_std": [False],
    "use_expln": [True],
    "squash_output": [True],
    "log_std_init": [-1.0],  # with discrete actions
    "features_extractor_kwargs": [{"sizes": (3,)}],  # without a class
}
# normalize_images needs images, the last two an encoder: see test_policies.py and test_surface.py
POLICY_ELSEWHERE = {"observation_space", "action_space", "lr_schedule", "normalize_images"}
POLICY_ELSEWHERE |= {"detach_encoder", "share_features_extractor"}


def names(callable_):
    return set(inspect.signature(callable_).parameters) - {"self", "kwargs"}


def test_the_tables_name_every_argument():
    ours = names(ActorCriticPolicy) | names(RoutedActorCriticPolicy.__init__)
    assert set(POLICY_USED) | set(POLICY_REFUSED) | POLICY_ELSEWHERE == ours


DISCRETE = gym.spaces.Discrete(4)


def policy(kind=RoutedActorCriticPolicy, actions=DISCRETE, **options):
    torch.manual_seed(0)
    sizes = {} if "net_arch" in options else {"hidden": (4,), "value_hidden": (4,)}
    options = {"modules": ("ghost", "diamond"), **sizes, **options}
    return kind(gym.spaces.Box(0, 1, (12,), np.float32), actions, lambda _: 0.1, **options)


def described(built):
    torch.manual_seed(1)
    obs, actions = torch.rand(5, 12), torch.zeros(5, dtype=torch.int64)
    values, log_probs, _ = built.evaluate_actions(obs, actions)
    groups = [{k: v for k, v in group.items() if k != "params"} for group in built.optimizer.param_groups]
    return [values.tolist(), log_probs.tolist(), str(built), repr(groups), type(built.optimizer)]


def test_every_policy_argument_is_used_or_refused():
    before = described(policy())
    for name, values in POLICY_USED.items():
        for value in values:
            assert described(policy(**{name: value})) != before, name
    for name, values in POLICY_REFUSED.items():
        for value in values:
            refused(lambda name=name, value=value: policy(**{name: value}), name)
            refused(lambda name=name, value=value: small_model(policy_kwargs={name: value}), name)
    wide = policy(actions=gym.spaces.Box(-1, 1, (2,)), log_std_init=-1.0)
    assert wide.log_std.tolist() == [-1.0, -1.0]
    assert policy(features_extractor_class=MlpEncoder, features_extractor_kwargs={"sizes": (7,)}).features_dim == 7


MISSPELT = {
    "hiden": ("policy_kwargs", "[4]", "did you mean 'hidden'?"),
    "net_arc": ("policy_kwargs", "did you mean 'net_arch'?"),
    "optimizer_kwarg": ("policy_kwargs", "did you mean 'optimizer_kwargs'?"),
    "made_up": ("policy_kwargs", "leave it out"),
    "extr": ("policy_kwargs", "did you mean 'extra'?"),
    "weight_decy": ("Adam (optimizer_kwargs)", "did you mean 'weight_decay'?"),
    "size": ("MlpEncoder (features_extractor_kwargs)", "did you mean 'sizes'?"),
}


@pytest.mark.parametrize(("name", "quoted"), MISSPELT.items())
def test_a_misspelt_argument_is_named_with_the_nearest(name, quoted, monkeypatch):
    monkeypatch.setitem(CLASSES, "Own", Own)
    options = {name: [4]}
    if name == "weight_decy":
        options = {"optimizer_kwargs": options}
    if name == "size":
        options = {"features_extractor_class": MlpEncoder, "features_extractor_kwargs": options}
    refused(lambda: policy(Own, **options), f"has no argument {name}, got [4]", *quoted)
    refused(lambda: small_model(policy_kwargs=options, policy=Own), f"has no argument {name}, got [4]", *quoted)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden": 4},
        {"hidden": (4.5,)},
        {"hidden": ()},
        {"net_arch": []},
        {"net_arch": {"pi": [4], "qf": [4]}},
        {"net_arch": [4], "hidden": (4,)},
        {"activation_fn": torch.nn.Sigmoid},
        {"activation_fn": torch.nn.Tanh, "activation": "relu"},
        {"encoder": (3,), "features_extractor_class": MlpEncoder},
        {"encoder": (3,), "features_extractor_kwargs": {"sizes": (3,)}},
        {"optimizer_kwargs": {"lr": 0.1}},
        {"kind": PaperPolicy, "planes": 5},
        {"kind": PaperPolicy, "planes": 0},
    ],
)
def test_policy_arguments_that_would_be_ignored_or_fail_later_are_refused(options):
    refused(lambda: policy(**options), *(set(options) - {"kind"}) & {"optimizer_kwargs", "planes", "activation_fn"})


class Own(RoutedActorCriticPolicy):
    """A user's policy with an argument of its own."""

    def __init__(self, *args, extra=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra = extra


@pytest.mark.parametrize("path", ["policy", "policy.pth", "deep/policy.zip"])
def test_a_policy_alone_is_saved_and_loaded(path, tmp_path, monkeypatch):
    monkeypatch.setitem(CLASSES, "Own", Own)
    for saved in (
        policy(activation="gelu", learned_gate=False, encoder=(3,), detach_encoder=True),
        policy(actions=gym.spaces.Box(-1, 1, (2,)), log_std_init=-1.0, optimizer_class=torch.optim.SGD),
        policy(PaperPolicy, planes=3),
        policy(Own, extra=5),
        small_model().policy,
    ):
        saved.ablate("ghost")
        saved.save(tmp_path / path)
        loaded = RoutedActorCriticPolicy.load(tmp_path / path, device="cpu")
        assert type(loaded) is type(saved) and loaded.steering == {"ablated": ["ghost"]}
        assert loaded.module_names == saved.module_names and str(loaded) == str(saved)
        assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), saved.parameters(), strict=True))
        assert getattr(loaded, "extra", 5) == 5
        obs = np.random.default_rng(0).random((6, *saved.observation_space.shape), dtype=np.float32)
        assert np.array_equal(*(each.predict(obs, deterministic=True)[0] for each in (loaded, saved)))


def test_something_else_is_not_loaded_as_a_policy(tmp_path):
    small_model().save(tmp_path / "model")
    policy().save(tmp_path / "policy")
    for kind, name in ((RoutedActorCriticPolicy, "model"), (PaperPolicy, "policy")):
        with pytest.raises(CheckpointError, match=f"{name} does not describe a {kind.__name__}"):
            kind.load(tmp_path / name)
