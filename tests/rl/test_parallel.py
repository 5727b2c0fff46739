"""ParallelLearner: each member becomes the model that it would become alone."""

import math

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from routed_rl.envs import DiamondGhostTensorVecEnv, DiamondGhostVecEnv
from routed_rl.rl import Overseer, ParallelLearner, RoutedPPO, RoutedREINFORCE
from routed_rl.rl.encoding import CLASSES
from routed_rl.routing import LabelNoise
from tests.rl.worlds import VALUES, small_model, two_doors

LEVELS = (0.4, 0.4, 0.02, 0.02)
WORLD = {"max_steps": 5}  # some episodes are truncated, others cut by the rollout's end


class Flat(BaseFeaturesExtractor):
    """Flattens observations and casts them to the default dtype."""

    def __init__(self, observation_space):
        super().__init__(observation_space, spaces.flatdim(observation_space))

    def forward(self, observations):
        return observations.flatten(1).to(torch.get_default_dtype())


CLASSES["Flat"] = Flat


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def member(seed, method="routing", kind=RoutedPPO, tensors=False, policy_kwargs=None, **options):
    level = LEVELS[seed]
    world = {"oversight": level, **WORLD}
    env = DiamondGhostTensorVecEnv(16, "cpu", **world) if tensors else DiamondGhostVecEnv(16, **world)
    noise = LabelNoise(0.1 * seed, 0.05 * seed)
    words = {name: options.pop(name) for name in ("unlabelled", "reward") if name in options}
    overseer = Overseer(VALUES, method, oversight=level, noise=noise, **words)
    policy = "MlpPolicy" if kind is RoutedPPO else "PaperPolicy"
    defaults = {"n_steps": 16, "replay_steps": 2, "replay_batch": 16, "replay_capacity": 40, "device": "cpu"}
    defaults |= {"batch_size": 64} if kind is RoutedPPO else {}
    return kind(
        policy,
        env,
        overseer,
        seed=seed,
        policy_kwargs={"hidden": (8, 8), **(policy_kwargs or {"features_extractor_class": Flat})},
        **defaults | options,
    )


class Rows(KVWriter):
    """Keeps what is logged."""

    def __init__(self):
        self.rows = []

    def write(self, key_values, key_excluded, step=0):
        self.rows.append({name: value for name, value in key_values.items() if not name.startswith("time/")})


def log_of(model):
    rows = Rows()
    model.set_logger(Logger(None, [rows]))
    return rows.rows


def together(models, tensors=False):
    def env(level):
        world = {"oversight": level, **WORLD}
        return DiamondGhostTensorVecEnv(32, "cpu", **world) if tensors else DiamondGhostVecEnv(32, **world)

    return ParallelLearner(models, [env(0.4), env(0.02)])


def distance(a, b):
    pairs = zip(a.policy.state_dict().values(), b.policy.state_dict().values(), strict=True)
    return max(float((x - y).abs().max()) for x, y in pairs)


@pytest.mark.parametrize(
    ("method", "kind", "options"),
    [
        ("routing", RoutedPPO, {}),
        ("routing", RoutedPPO, {"tensors": True}),
        ("routing", RoutedPPO, {"unlabelled": "none", "max_grad_norm": None}),
        ("routing", RoutedPPO, {"replay_steps": 0}),
        ("routing", RoutedREINFORCE, {}),
        ("no-routing", RoutedPPO, {}),
        ("no-gate", RoutedPPO, {"bootstrap": False}),
        ("penalty", RoutedPPO, {}),
        ("filtering", RoutedREINFORCE, {}),
        ("reward-model", RoutedPPO, {}),
        ("routing", RoutedPPO, {"unlabelled": "predicted", "solo": 0.5, "tensors": True}),
        ("no-gate", RoutedPPO, {"unlabelled": "predicted", "solo": 0.5}),
        ("routing", RoutedPPO, {"reward": "environment", "solo": 0.5, "tensors": True}),
        ("penalty", RoutedPPO, {"reward": "environment"}),
    ],
)
def test_four_members_are_four_single_runs(method, kind, options, double):
    """Several updates in double precision give the same weights, optimizers, buffers, replay and log rows."""
    alone, members = ([member(seed, method, kind, **options) for seed in range(4)] for _ in range(2))
    logs = [[log_of(model) for model in models] for models in (alone, members)]
    starts = [{name: tensor.clone() for name, tensor in model.policy.state_dict().items()} for model in members]
    updates = 4 if method == "routing" and kind is RoutedPPO and not options else 2
    for model in alone:
        model.learn(updates * 256)
    together(members, options.get("tensors", False)).learn(updates * 256, [None] * 4)
    for one, other, start in zip(alone, members, starts, strict=True):
        assert distance(one, other) < 1e-8
        assert any(not torch.equal(t, start[name]) for name, t in other.policy.state_dict().items())
        mine, theirs = (model.policy.optimizer.state_dict()["state"] for model in (one, other))
        assert mine.keys() == theirs.keys()
        for number, state in mine.items():
            assert all(torch.allclose(tensor, theirs[number][name], atol=1e-8) for name, tensor in state.items())
        assert (one.replay.count == other.replay.count).all()
        assert (one.buffer.labels == other.buffer.labels).all() and (one._last_obs == other._last_obs).all()
        assert (
            (one.num_timesteps, one._n_updates) == (other.num_timesteps, other._n_updates) == (updates * 256, updates)
        )
    assert distance(members[0], members[1]) > 1e-3
    for mine, theirs in zip(*logs, strict=True):
        assert len(mine) == updates and mine[-1]["train/value_loss"] > 0
        for row, other in zip(mine, theirs, strict=True):
            assert other == pytest.approx(row, rel=1e-6, abs=1e-7)


def test_truncated_episodes_are_their_own_members_alone():
    """The first environment has no truncated episodes, the second has some."""

    def model(seed, max_steps):
        return small_model(DiamondGhostVecEnv(16, max_steps=max_steps), seed=seed, n_steps=6, batch_size=None)

    limits = (10**6, 10**6, 3, 3)
    alone, members = ([model(seed, limit) for seed, limit in enumerate(limits)] for _ in range(2))
    ParallelLearner(members, [DiamondGhostVecEnv(32, max_steps=limit) for limit in (10**6, 3)]).learn(96, [None] * 4)
    for one, other in zip(alone, members, strict=True):
        one.learn(96)
        assert torch.allclose(one.buffer.bootstrap, other.buffer.bootstrap)
    assert [bool(other.buffer.bootstrap.any()) for other in members] == [False, False, True, True]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RoutedPPO, {}),
        (RoutedREINFORCE, {}),
        (RoutedPPO, {"policy_kwargs": {"encoder": (8,)}}),
        (RoutedPPO, {"policy_kwargs": {"encoder": (8,), "detach_encoder": True}}),
        (RoutedPPO, {"policy_kwargs": {"optimizer_class": torch.optim.AdamW}}),
    ],
)
def test_one_update_in_single_precision(kind, options):
    alone, members = ([member(seed, kind=kind, **options) for seed in range(4)] for _ in range(2))
    for model in alone:
        model.learn(256)
    together(members).learn(256, [None] * 4)
    for one, other in zip(alone, members, strict=True):
        assert (one.buffer.actions == other.buffer.actions).all()
        assert distance(one, other) < 1e-5


def test_what_nobody_taught_does_not_move():
    """Without oversight, and with ``unlabelled="none"``, modules and gate keep their bits; the value network learns."""
    models = [small_model(DiamondGhostVecEnv(16, oversight=0.0), seed=s, overseer=Overseer(VALUES, unlabelled="none"))
              for s in range(2)]  # fmt: skip
    before = [{n: p.clone() for n, p in model.policy.named_parameters()} for model in models]
    ParallelLearner(models, [DiamondGhostVecEnv(32, oversight=0.0)]).learn(3 * 128, [None] * 2)
    for model, start in zip(models, before, strict=True):
        for name, parameter in model.policy.named_parameters():
            routed = "experts" in name or ".gate." in name
            assert not routed or torch.equal(parameter, start[name])
        assert not torch.equal(model.policy.value_net.weight, start["value_net.weight"])


def test_members_leave_a_batch_and_go_on_alone(double):
    members, alone = ([member(seed) for seed in range(4)] for _ in range(2))
    learner = together(members)
    for updates, reset in ((3, True), (2, False)):
        learner.learn(updates * 256, [None] * 4, reset_num_timesteps=reset)
    for model in members:
        model.learn(2 * 256, reset_num_timesteps=False)
    for one, other in zip(alone, members, strict=True):
        for updates, reset in ((3, True), (2, False), (2, False)):
            one.learn(updates * 256, reset_num_timesteps=reset)
        assert distance(one, other) < 1e-8


class Stop(BaseCallback):
    def __init__(self, at):
        super().__init__()
        self.at = at

    def _on_step(self):
        return self.num_timesteps < self.at


def test_a_callback_that_stops_one_stops_all():
    members = [member(seed) for seed in range(4)]
    together(members).learn(1024, [None, Stop(300), None, None])
    assert [(model._n_updates, model.num_timesteps) for model in members] == [(1, 304)] * 4
    together(members).learn(512, [None] * 4, reset_num_timesteps=False)
    assert not any(model.buffer.waiting.any() for model in members)


def test_a_member_that_became_nan_is_said():
    models = [member(seed) for seed in range(4)]
    learner = together(models)
    with torch.no_grad():
        models[1].policy.action_net.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the policy's probabilities became NaN"):
        learner.learn(256, [None] * 4)


def steered():
    model = member(1)
    model.steer("ghost")
    return model


@pytest.mark.parametrize(
    ("other", "envs", "message"),
    [
        (lambda: member(1, reward="environment"), [32], "agree in reward, got 'outcome' and 'environment'"),
        (lambda: member(1, learning_rate=0.1), [32], "agree in learning_rate, got .* and .*0.1"),
        (lambda: member(1, "naive"), [32], "agree in (policy_kwargs|method)"),
        (lambda: member(1, kind=RoutedREINFORCE), [32], "agree in algorithm, got 'RoutedPPO' and 'RoutedREINFORCE'"),
        (steered, [32], "is steered"),
        (lambda: member(1), [33], r"16 rows for each of 2 models, got \[33\]"),
        (lambda: member(1), [16], r"got \[16\]"),
        (lambda: member(1, policy_kwargs={"hidden": (9, 9)}), [32], "agree in policy_kwargs"),
    ],
)
def test_what_cannot_learn_together(other, envs, message):
    with pytest.raises(ValueError, match=message):
        ParallelLearner([member(0), other()], [DiamondGhostVecEnv(n) for n in envs])


def test_a_number_that_is_none_is_not_hidden():
    members = [member(seed) for seed in range(4)]
    with torch.no_grad():
        members[2].policy.value_net.weight.fill_(float("nan"))
    logs = [log_of(model) for model in members]
    together(members).learn(256, [None] * 4)
    assert [math.isnan(log[0]["train/value_loss"]) for log in logs] == [False, False, True, False]


def test_what_cannot_learn_in_parallel():
    with pytest.raises(ValueError, match="must have the models' spaces"):
        ParallelLearner([member(0)], [DiamondGhostVecEnv(16, size=4)])
    with pytest.raises(ValueError, match="needs unfinished='unlabelled', got 'hold'"):
        ParallelLearner([member(0, unfinished="hold")], [DiamondGhostVecEnv(16)])
    doors = small_model(two_doors(), overseer=Overseer({"bad": -1, "good": 1}))
    with pytest.raises(ValueError, match="get_state and set_state"):
        ParallelLearner([doors], [two_doors()])
    with pytest.raises(ValueError, match="at least one model"):
        ParallelLearner([], [])
