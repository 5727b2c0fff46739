"""State-dependent exploration (gSDE) of routed policies."""

import itertools

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch.distributions import Normal

from routed_rl.rl import Overseer, RoutedPPO, SteeredEvalCallback, evaluate

from .test_surface import Any, learner
from .test_wrappers import Slider
from .worlds import TwoDoors, fingerprint, refused

ROUTED = Overseer({"bad": -1.0, "good": 1.0}, "routing", oversight=0.5)
KINDS = {
    "plain": {},
    "redrawn": {"sde_sample_freq": 2},
    "one deviation per feature": {"policy_kwargs": {"full_std": False, "use_expln": True}},
    "squashed": {"policy_kwargs": {"squash_output": True}},
}


def pushed(n=8):
    return DummyVecEnv([Slider] * n)


def model_of(env=None, **options):
    return learner("MlpPolicy", env or pushed(), ROUTED, use_sde=True, **{"n_steps": 8, **options})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1,), (2, 2)])
def test_it_learns_is_saved_and_continued(kind, shape, tmp_path):
    env = DummyVecEnv([lambda: Any(spaces.Box(-1, 1, (3,), np.float32), spaces.Box(-2, 5, shape, np.float32))] * 2)
    model = model_of(env, **KINDS[kind]).learn(32)
    model.save(tmp_path / "model")
    loaded = RoutedPPO.load(tmp_path / "model", env=env, device="cpu")
    assert (loaded.use_sde, loaded.sde_sample_freq) == (True, KINDS[kind].get("sde_sample_freq", -1))
    obs = env.reset()
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    loaded.learn(16, reset_num_timesteps=False)
    found = evaluate(loaded, env, n_episodes=4)
    assert found["episode_length"] == 3 and np.isfinite(found["entropy"])


@pytest.mark.parametrize(("every", "drawn"), [(-1, 1), (0, 1), (2, 4), (3, 3)])
def test_the_noise_is_a_function_of_the_features_until_it_is_drawn_again(every, drawn, monkeypatch):
    model, matrices = model_of(sde_sample_freq=every), []
    sample = model.policy.get_distribution

    def recorded(obs, players=None):
        distribution = sample(obs, players)
        matrices.append(model.policy.action_dist.exploration_matrices.clone())
        noise = distribution.get_noise(distribution._latent_sde)
        expected = torch.einsum("bd,bda->ba", distribution._latent_sde, matrices[-1])
        assert torch.allclose(noise, expected, atol=1e-6)
        return distribution

    monkeypatch.setattr(model.policy, "get_distribution", recorded)
    model._act = model._sample
    model.learn(64)
    assert len(matrices) == 8 and len({matrix.numpy().tobytes() for matrix in matrices}) == drawn


@pytest.mark.parametrize("squash", [False, True])
def test_log_probabilities_and_routed_gradients_are_those_of_single_samples(squash):
    model = model_of(policy_kwargs={"squash_output": squash})
    policy = model.policy
    obs, routes = torch.rand(6, 6), torch.rand(6, 3).round()
    actions = torch.rand(6, 1) * 1.6 - 0.8
    parameters = [p for name in policy.module_names for p in policy.module_parameters(name)]
    _, log_probs, entropies, _ = policy.evaluate_routed(obs, actions, routes)
    found = torch.autograd.grad(log_probs.sum(), parameters)
    expected = [torch.zeros_like(p) for p in parameters]
    owner = [m for m, name in enumerate(policy.module_names) for _ in policy.module_parameters(name)]
    for i in range(6):
        latent = policy.mlp_extractor.forward_actor(obs[i : i + 1])
        deviation = (latent.detach() ** 2 @ policy.log_std.exp() ** 2 + 1e-6).sqrt()
        gauss = torch.atanh(actions[i]) if squash else actions[i]
        log_prob = Normal(policy.action_net(latent), deviation).log_prob(gauss).sum()
        if squash:
            log_prob = log_prob - torch.log(1 - actions[i] ** 2 + 1e-6).sum()
        assert log_probs[i].item() == pytest.approx(log_prob.item(), abs=1e-4)
        for total, gradient, column in zip(expected, torch.autograd.grad(log_prob, parameters), owner, strict=True):
            total += routes[i, column] * gradient
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))
    assert entropies.shape == (6,) and (not squash or torch.equal(entropies, -log_probs))


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_has_the_same_bytes(kind, tmp_path):
    whole = model_of(**KINDS[kind]).learn(128)
    whole.save(tmp_path / "model")
    whole.learn(128, reset_num_timesteps=False)
    resumed = RoutedPPO.load(tmp_path / "model", env=pushed(), device="cpu", force_reset=False)
    resumed.learn(128, reset_num_timesteps=False)
    assert fingerprint(resumed) == fingerprint(whole)


def test_evaluating_changes_no_noise_of_training():
    plain = model_of().learn(128)
    watched = model_of()
    watched.learn(128, SteeredEvalCallback(pushed(4), "good", eval_freq=3, n_eval_episodes=2, verbose=0))
    assert fingerprint(plain) == fingerprint(watched)


@pytest.mark.parametrize("envs", [1, 3])
def test_each_episode_of_an_evaluation_has_noise_of_its_own(envs, monkeypatch):
    model, seen = model_of(), []
    renew = type(model.policy).renew_noise

    def recorded(policy, rows):
        renew(policy, rows)
        seen.append((rows.copy(), policy.action_dist.exploration_matrices.clone()))

    monkeypatch.setattr(type(model.policy), "renew_noise", recorded)
    before = model.policy.action_dist.exploration_matrices
    evaluate(model, pushed(envs), n_episodes=12)
    assert model.policy.action_dist.exploration_matrices is before
    for (_, old), (rows, new) in itertools.pairwise(seen):
        for row in range(envs):
            assert torch.equal(old[row], new[row]) != rows[row]
    assert sum(rows.sum() for rows, _ in seen) >= 12


def test_the_entropy_of_squashed_actions_does_not_depend_on_how_they_are_chosen():
    model = model_of(policy_kwargs={"squash_output": True, "log_std_init": -1.0})
    greedy, sampled = (evaluate(model, pushed(), n_episodes=200, deterministic=how)["entropy"] for how in (True, False))
    assert greedy == pytest.approx(sampled, abs=0.3)


def test_it_learns_what_the_exploration_of_stable_baselines3_learns():
    """With one network, in the world whose best policy is known: the good door in nearly all episodes."""
    overseer = Overseer({"bad": -1.0, "good": 1.0}, "oracle", oversight=0.5)
    model = RoutedPPO("MlpPolicy", pushed(16), overseer, use_sde=True, sde_sample_freq=4, seed=0, device="cpu")
    model.learn(16 * 32 * 40)
    assert evaluate(model, pushed(), n_episodes=100, deterministic=True)["outcomes"]["good"] > 0.95


def test_what_needs_it_is_refused_without_it():
    discrete = DummyVecEnv([TwoDoors] * 2)
    with pytest.raises(ValueError, match="gSDE"):
        PPO("MlpPolicy", discrete, use_sde=True)
    refused(lambda: learner("MlpPolicy", discrete, ROUTED, use_sde=True), "use_sde=True needs a Box action space")
    for name, value in {"full_std": False, "use_expln": True, "squash_output": True}.items():
        refused(lambda name=name, value=value: learner("MlpPolicy", pushed(2), policy_kwargs={name: value}), name)
    refused(lambda: learner("MlpPolicy", pushed(2), policy_kwargs={"use_sde": True}), "policy_kwargs", "use_sde")
    refused(lambda: model_of(sde_sample_freq=-2), "sde_sample_freq", "-2")
