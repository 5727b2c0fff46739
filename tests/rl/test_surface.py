"""What users of Stable-Baselines3's PPO bring works here: spaces, wrappers, losses, saving."""

import itertools

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from routed_rl.rl import Overseer, ParallelLearner, RoutedActorCriticPolicy, RoutedPPO, evaluate
from routed_rl.rl.encoding import CLASSES, decode_space, encode_space
from routed_rl.rl.observations import Observations
from routed_rl.rl.rollout import Batch

from .test_wrappers import Kept
from .worlds import TwoDoors, fingerprint, two_doors

DOORS = Overseer({"bad": -1.0, "good": 1.0})
IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
VECTOR = spaces.Box(-1, 1, (3,), np.float32)


class Any(gym.Env):
    """An environment with any spaces, whose episodes last three steps. It checks the actions that it gets."""

    def __init__(self, observation_space, action_space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation_space.seed(seed)
        self.steps = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.steps += 1
        good = bool(self.np_random.random() < 0.5)
        info = {"outcome": "good" if good else "bad", "overseen": good}
        return self.observation_space.sample(), float(good), self.steps == 3, False, info if self.steps == 3 else {}


# Observations → policy, its arguments, and the wrappers for which Stable-Baselines3 has no such observations.
OBSERVATIONS = {
    "vector": (VECTOR, "MlpPolicy", {}, ()),
    "image": (IMAGE, "CnnPolicy", {"features_extractor_kwargs": {"features_dim": 4}}, ("VecNormalize",)),
    "dict": (
        spaces.Dict({"image": IMAGE, "vector": VECTOR, "count": spaces.Box(0, 2**40, (1,), np.int64)}),
        "MultiInputPolicy",
        {"features_extractor_kwargs": {"cnn_output_dim": 4}},
        (),
    ),
    "dict of numbers": (
        spaces.Dict({"a": spaces.Discrete(3), "b": spaces.MultiDiscrete([2, 3]), "c": spaces.MultiBinary(3)}),
        "MultiInputPolicy",
        {},
        ("VecNormalize", "VecFrameStack"),
    ),
    "Discrete": (spaces.Discrete(4), "MlpPolicy", {}, ("VecNormalize", "VecFrameStack")),
    "MultiDiscrete": (spaces.MultiDiscrete([2, 3]), "MlpPolicy", {}, ("VecNormalize", "VecFrameStack")),
    "MultiBinary": (spaces.MultiBinary([2, 2]), "MlpPolicy", {}, ("VecNormalize", "VecFrameStack")),
    "uint16": (spaces.Box(0, 2**16 - 1, (3,), np.uint16), "MlpPolicy", {}, ()),
}
ACTIONS = {
    "Discrete": spaces.Discrete(3),
    "Discrete from 3": spaces.Discrete(3, start=3),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3], start=[0, 5]),
    "MultiBinary": spaces.MultiBinary(3),
    "Box": spaces.Box(-1, 1, (2,), np.float32),
    "Box of two dimensions": spaces.Box(-1, 1, (2, 2), np.float64),
}
WRAPPERS = {
    "none": lambda env: env,
    "VecMonitor": VecMonitor,
    "VecNormalize": lambda env: VecNormalize(
        env, norm_obs_keys=["vector"] if isinstance(env.observation_space, spaces.Dict) else None
    ),
    "VecFrameStack": lambda env: VecFrameStack(env, 2),
}


def learner(policy, env, overseer=DOORS, **options):
    defaults = {"n_steps": 4, "n_epochs": 1, "replay_steps": 1, "replay_batch": 2, "replay_capacity": 4}
    networks = {"hidden": (3,), "value_hidden": (3,)} | options.pop("policy_kwargs", {})
    return RoutedPPO(policy, env, overseer, seed=0, device="cpu", policy_kwargs=networks, **defaults | options)


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_any_space_under_any_wrapper_is_learned_saved_and_continued(name, tmp_path):
    observation_space, policy, networks, without = OBSERVATIONS[name]
    wrappers = WRAPPERS.keys() - set(without)
    for number, (wrapper, actions) in enumerate(itertools.product(sorted(wrappers), ACTIONS)):

        def make(wrapper=wrapper, actions=actions):
            return WRAPPERS[wrapper](DummyVecEnv([lambda: Any(observation_space, ACTIONS[actions])] * 2))

        model = learner(policy, make(), policy_kwargs=networks).learn(16)
        model.save(tmp_path / f"{number}")
        loaded = RoutedPPO.load(tmp_path / f"{number}", env=make(), device="cpu")
        obs = model.get_env().reset()
        acts = [each.predict(obs, deterministic=True)[0] for each in (model, loaded)]
        assert np.array_equal(*acts)
        assert all(ACTIONS[actions].contains(act) for act in acts[0])
        loaded.learn(8, reset_num_timesteps=False)
        assert loaded.num_timesteps == 24
    result = evaluate(model, make(), n_episodes=2)
    assert result["episode_length"] == 3


@pytest.mark.parametrize("space", [case[0] for case in OBSERVATIONS.values()] + list(ACTIONS.values()))
def test_spaces_are_saved_without_loss(space):
    assert decode_space(encode_space(space)) == space


@pytest.mark.parametrize("name", OBSERVATIONS)
def test_observations_become_a_tensor_and_back_without_loss(name):
    space = OBSERVATIONS[name][0]
    space.seed(0)
    rows = [space.sample() for _ in range(5)]
    observations, keyed = Observations(space), isinstance(space, spaces.Dict)
    stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0]} if keyed else np.stack(rows)
    packed = observations.pack(stacked, "cpu")
    assert packed.shape == (5, *observations.shape) and packed.dtype == observations.dtype
    assert torch.equal(packed, observations.pack(np.array(rows), "cpu"))
    back = observations.arrays(packed[torch.tensor([3, 1])])
    for key in rows[0] if keyed else [...]:
        assert np.array_equal(back[key], stacked[key][[3, 1]]) and back[key].dtype == stacked[key].dtype


class Named(TwoDoors):
    """TwoDoors whose observation is a Dict of the same vector."""

    observation_space = spaces.Dict({"all": TwoDoors.observation_space})

    def _obs(self):
        return {"all": super()._obs()}


class Shifted(TwoDoors):
    """TwoDoors whose actions are numbered from 5."""

    action_space = spaces.Discrete(2, start=5)

    def step(self, action):
        return super().step(action - 5)


@pytest.mark.parametrize(("kind", "policy"), [(Named, "MultiInputPolicy"), (Shifted, "MlpPolicy")])
def test_the_same_world_in_other_spaces_teaches_the_same(kind, policy):
    envs = [two_doors(4), DummyVecEnv([kind] * 4)]
    models = [learner(name, env, n_steps=16).learn(256) for name, env in zip(("MlpPolicy", policy), envs, strict=True)]
    ours, theirs = (
        {name: value for name, value in fingerprint(model).items() if name.startswith(("policy.", "optimizer."))}
        for model in models
    )
    assert ours == theirs


class KeptDict(Kept):
    """A Dict of a vector and a number."""

    observation_space = spaces.Dict({"place": TwoDoors.observation_space, "steps": spaces.Discrete(20)})

    def _obs(self):
        return {"place": super()._obs(), "steps": self.steps}


def test_training_on_a_dict_continues_as_if_it_had_never_stopped(tmp_path):
    def make():
        return VecNormalize(DummyVecEnv([KeptDict] * 2), norm_obs_keys=["place"])

    unbroken = learner("MultiInputPolicy", make()).learn(24).learn(24, reset_num_timesteps=False)
    learner("MultiInputPolicy", make()).learn(24).save(tmp_path / "model")
    resumed = RoutedPPO.load(tmp_path / "model", env=make(), force_reset=False)
    assert fingerprint(resumed.learn(24, reset_num_timesteps=False)) == fingerprint(unbroken)


@pytest.mark.parametrize(
    ("policy", "space", "message"),
    [
        ("MlpPolicy", OBSERVATIONS["dict"][0], "use `MultiInputPolicy`"),
        ("CnnPolicy", OBSERVATIONS["dict"][0], "use `MultiInputPolicy`"),
        ("MultiInputPolicy", VECTOR, "MlpPolicy for anything else"),
        ("CnnPolicy", VECTOR, "NatureCNN need images"),
        ("CnnPolicy", spaces.Box(-1, 1, (3, 40, 40)), "normalize_images=False"),
        ("CnnPolicy", spaces.Box(0, 255, (3, 20, 40), np.uint8), "at least 36"),
        ("MultiInputPolicy", spaces.Dict({"a": spaces.Box(0, 255, (3, 20, 40), np.uint8)}), "at least 36"),
    ],
)
def test_observations_that_a_policy_cannot_read_are_refused(policy, space, message):
    with pytest.raises(ValueError, match=message) as error:
        learner(policy, Any(space, spaces.Discrete(2)))
    assert "\n" not in str(error.value)


def test_normalised_images_are_read_if_the_user_says_so():
    env = VecNormalize(DummyVecEnv([lambda: Any(spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Discrete(2))]))
    learner("CnnPolicy", env, policy_kwargs={"normalize_images": False}).learn(8)


def test_parallel_learners_refuse_what_they_cannot_batch():
    cases = [learner("MultiInputPolicy", DummyVecEnv([KeptDict])), learner("MlpPolicy", two_doors(2), target_kl=1.0)]
    for model, message in zip(cases, ("other than a Dict", "target_kl=None"), strict=True):
        with pytest.raises(ValueError, match=message):
            ParallelLearner([model], [model.env])


# --- losses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_range_vf", [None, 0.02])
@pytest.mark.parametrize("normalize_advantage", [False, True])
def test_the_loss_is_that_of_stable_baselines3(clip_range_vf, normalize_advantage):
    options = {"clip_range": 0.05, "clip_range_vf": clip_range_vf, "normalize_advantage": normalize_advantage}
    theirs = PPO(
        RoutedActorCriticPolicy,
        two_doors(2),
        learning_rate=0.0,
        n_steps=16,
        batch_size=32,
        n_epochs=1,
        seed=0,
        device="cpu",
        **options,
    )
    _, callback = theirs._setup_learn(32)
    theirs.collect_rollouts(theirs.env, callback, theirs.rollout_buffer, 16)
    with torch.no_grad():
        for parameter in theirs.policy.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    steps = next(theirs.rollout_buffer.get())
    theirs.train()

    ours = learner("MlpPolicy", two_doors(2), Overseer(DOORS.values, "naive"), **options)
    ours.policy = theirs.policy
    labels = torch.zeros(32, dtype=torch.int64)
    actions = steps.actions.long().flatten()
    gate = torch.full_like(labels, len(ours.overseer.modules))
    batch = Batch(
        steps.observations, actions, labels, gate, steps.old_log_prob, steps.advantages, steps.returns, steps.returns
    )
    _, _, stats = ours.loss(batch, 0.0)
    logged = theirs.logger.name_to_value
    names = {"policy_loss": "policy_gradient_loss"}
    for name in ("policy_loss", "value_loss", "approx_kl", "clip_fraction"):
        assert stats[name].item() == pytest.approx(logged[f"train/{names.get(name, name)}"], abs=1e-6), name
    assert 0 < stats["clip_fraction"] < 1


def test_clipping_follows_its_schedule():
    steps = torch.zeros(4)
    batch = Batch(
        steps, steps, steps.long(), steps.long(), steps, torch.ones(4), torch.ones(4), steps
    )  # value estimates of 0
    model = learner("MlpPolicy", two_doors(2), clip_range=0.0, clip_range_vf=LinearSchedule(0.4, 0.2, 1.0))
    for left, limit in ((1.0, 0.4), (0.5, 0.3), (0.0, 0.2)):
        model._update_current_progress_remaining(1 - left, 1)
        assert model.value_loss(batch, torch.full((4,), 0.9)).item() == pytest.approx((1 - limit) ** 2)
        assert model.value_loss(batch, torch.full((4,), 0.1)).item() == pytest.approx(0.9**2)


@pytest.mark.parametrize(("target_kl", "steps"), [(None, 5), (1e9, 5), (1e-12, 1)])
def test_an_update_ends_when_the_policy_has_moved_too_far(target_kl, steps):
    """The first minibatch has a divergence of 0; after one gradient step it is above the limit."""
    model = learner("MlpPolicy", two_doors(4), batch_size=None, n_epochs=5, replay_steps=0, target_kl=target_kl)
    model.learn(16)
    value_bias = model.policy.value_net.bias
    assert model.policy.optimizer.state[value_bias]["step"] == steps


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"n_steps": 1, "batch_size": None}])
def test_the_advantage_of_one_step_is_not_normalised(options):
    with pytest.raises(ValueError, match="normalize_advantage=True needs minibatches of at least 2 steps"):
        learner("MlpPolicy", TwoDoors(), normalize_advantage=True, **options)


class Normed(FlattenExtractor):
    """An encoder whose outputs depend on the whole batch while it learns."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.norm = torch.nn.BatchNorm1d(self.features_dim)

    def forward(self, observations):
        return self.norm(super().forward(observations))


def test_batch_normalisation_learns_from_minibatches_only(monkeypatch):
    monkeypatch.setitem(CLASSES, "Normed", Normed)
    model = learner(
        "MlpPolicy", TwoDoors(), n_epochs=3, replay_steps=0, policy_kwargs={"features_extractor_class": Normed}
    )
    model.learn(4)
    assert model.policy.features_extractor.norm.num_batches_tracked == 3


# --- the policy -----------------------------------------------------------------------------------


def test_net_arch_and_activation_fn_are_other_names_of_our_arguments():
    def built(**options):
        torch.manual_seed(0)
        return RoutedActorCriticPolicy(VECTOR, spaces.Discrete(2), lambda _: 0.1, modules=("a", "b"), **options)

    pairs = [
        ({"net_arch": [5, 4]}, {"hidden": (5, 4), "value_hidden": (5, 4)}),
        ({"net_arch": {"pi": [5], "vf": [4, 3]}}, {"hidden": (5,), "value_hidden": (4, 3)}),
        ({"net_arch": {"pi": [5]}}, {"hidden": (5,), "value_hidden": ()}),
        ({"activation_fn": torch.nn.Tanh}, {"activation": "tanh"}),
    ]
    for theirs, ours in pairs:
        one, other = built(**theirs), built(**ours)
        assert str(one) == str(other) and one.net_arch == other.net_arch
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    with pytest.warns(UserWarning, match="old form"):
        assert built(net_arch=[{"pi": [5], "vf": [4]}]).net_arch == {"pi": [5], "vf": [4]}


def test_without_hidden_layers_a_single_network_is_linear():
    policy = RoutedActorCriticPolicy(VECTOR, spaces.Discrete(2), lambda _: 0.1, net_arch=[])
    obs = torch.rand(2, 3)
    logits = torch.log_softmax(policy.action_net(obs), dim=-1)
    torch.testing.assert_close(policy.get_distribution(obs).distribution.logits, logits)
    torch.testing.assert_close(policy.predict_values(obs), policy.value_net(obs))


def test_separate_encoders_learn_from_their_own_losses():
    options = {"features_extractor_kwargs": {"features_dim": 4}, "share_features_extractor": False}
    model = learner("CnnPolicy", Any(IMAGE, spaces.Discrete(2)), policy_kwargs=options).learn(8)
    policy = model.policy
    obs, actions = torch.zeros(2, 1, 36, 36), torch.zeros(2, dtype=torch.int64)
    values, log_probs, _, _ = policy.evaluate_routed(obs, actions, torch.ones(2, 3))
    torch.testing.assert_close(values, policy.evaluate_actions(obs, actions)[0].flatten())
    torch.testing.assert_close(log_probs, policy.evaluate_actions(obs, actions)[1])
    for loss, mine, other in (
        (values, policy.vf_features_extractor, policy.pi_features_extractor),
        (log_probs, policy.pi_features_extractor, policy.vf_features_extractor),
    ):
        policy.zero_grad()
        loss.sum().backward()
        assert all(p.grad is not None for p in mine.parameters())
        assert all(p.grad is None for p in other.parameters())


# --- saving and callbacks -------------------------------------------------------------------------


def test_save_and_load_take_the_arguments_of_stable_baselines3(tmp_path, capsys):
    model = learner("MlpPolicy", two_doors(2), verbose=2, gamma=0.5)
    model.policy = torch.compile(model.policy)
    model.save(tmp_path / "without.zip", exclude=["verbose", "gamma"], include=["gamma"])
    replaced = {"learning_rate": 0.25, "made_up": 1.0}
    loaded = RoutedPPO.load(tmp_path / "without.zip", None, "cpu", replaced, True)
    assert (loaded.verbose, loaded.gamma, loaded.learning_rate) == (0, 0.5, 0.25) and not hasattr(loaded, "made_up")
    assert "PyTorch" in capsys.readouterr().out
    assert all(torch.equal(a, b) for a, b in zip(loaded.policy.parameters(), model.policy.parameters(), strict=True))
    for options in ({"exclude": ["policy"]}, {"include": ["env"]}):
        with pytest.raises(ValueError, match=r"must name constructor arguments.*\['(policy|env)'\]"):
            model.save(tmp_path / "never", **options)


def test_evaluation_in_a_callback_uses_the_statistics_of_training(tmp_path):
    train, evaluation = VecNormalize(two_doors(2)), VecNormalize(two_doors(2), training=False, norm_reward=False)
    model = learner("MlpPolicy", train, tensorboard_log=tmp_path)
    model.learn(32, EvalCallback(evaluation, n_eval_episodes=2, eval_freq=16, verbose=0))
    assert np.array_equal(train.obs_rms.mean, evaluation.obs_rms.mean) and train.obs_rms.mean.any()
    assert (tmp_path / "RoutedPPO_1").is_dir()
