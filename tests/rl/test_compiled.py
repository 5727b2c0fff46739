"""Compiled learners, as all are on a GPU, learn what plain ones do: in any space, and with any options."""

import pytest
import torch
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv

from routed_rl.envs import DiamondGhostTensorVecEnv, DiamondGhostVecEnv
from routed_rl.rl import METHODS, Overseer, RoutedPPO, RoutedREINFORCE

from .test_device import learner, same
from .test_surface import ACTIONS, OBSERVATIONS, VECTOR, Any
from .test_surface import learner as any_learner

BOX = ACTIONS["Box"]


class Repeatable(Any):
    """Each episode has its own seed, so two of these have the same episodes."""

    episode = 0

    def reset(self, *, seed=None, options=None):
        self.episode += 1
        return super().reset(seed=self.episode)


# Name → policy, spaces of observations and actions, and options.
CASES = {
    **{f"observations: {name}": (case[1], case[0], ACTIONS["Discrete"], {}) for name, case in OBSERVATIONS.items()},
    **{f"actions: {name}": ("MlpPolicy", VECTOR, space, {}) for name, space in ACTIONS.items()},
    "gSDE": ("MlpPolicy", VECTOR, BOX, {"use_sde": True, "sde_sample_freq": 2}),
    "squashed": ("MlpPolicy", VECTOR, BOX, {"use_sde": True, "policy_kwargs": {"squash_output": True}}),
    "alone": ("MlpPolicy", VECTOR, BOX, {"solo": 1.0, "clip_range_vf": 0.2, "target_kl": 0.1}),
    "encoder": ("MlpPolicy", VECTOR, BOX, {"policy_kwargs": {"encoder": (4,), "detach_encoder": True}}),
    **{name: ("MlpPolicy", VECTOR, BOX, {"overseer": name}) for name in METHODS},
}


@pytest.mark.integration
@pytest.mark.parametrize("name", CASES)
def test_in_any_space_with_any_options(name):
    policy, observations, actions, options = CASES[name]
    method = options.get("overseer", "routing")
    overseer = Overseer({"bad": -1, "good": 1}, method, **{"oversight": 0.5} if method == "penalty" else {})

    def make():
        env = DummyVecEnv([lambda: Repeatable(observations, actions)] * 2)
        return any_learner(policy, env, **options | {"overseer": overseer})

    plain, compiled = make(), make()
    torch.compiler.reset()
    compiled.compile(backend="aot_eager")
    for model in (plain, compiled):
        model.learn(24)
    assert same(plain, compiled)


@pytest.mark.parametrize(
    ("kind", "options"),
    [(RoutedPPO, {"clip_range": LinearSchedule(0.3, 0.1, 1.0), "unfinished": "hold"}), (RoutedREINFORCE, {})],
)
def test_acting_and_learning_are_captured_in_one_graph_each(kind, options):
    """As on a GPU, except for the code generator: one graph without a break, and the same result.

    Schedules change in every update, and with "hold" so does the number of steps. Neither compiles more than twice.
    """
    plain, compiled = (learner(DiamondGhostTensorVecEnv(32, "cpu", oversight=0.3), kind, **options) for _ in range(2))
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    torch.compiler.reset()
    compiled.compile(backend=counting, fullgraph=True)
    for model in (plain, compiled):
        model.learn(4 * 256)
    assert same(plain, compiled)
    assert 3 <= len(graphs) <= 6


@pytest.mark.slow
def test_a_compiled_learner_resumes_to_the_same_bytes(tmp_path):
    world = {"oversight": 0.3, "seed": 0}
    whole, half, plain = (learner(DiamondGhostVecEnv(32, **world), RoutedPPO) for _ in range(3))
    for model in (whole, half):
        model.compile()
    for model in (whole, half, plain):
        model.learn(2 * 256)
    half.save(tmp_path / "model")
    again = RoutedPPO.load(tmp_path / "model", env=DiamondGhostVecEnv(32, **world), device="cpu", force_reset=False)
    again.compile()
    for model in (whole, again, plain):
        model.learn(2 * 256, reset_num_timesteps=False)
    assert same(whole, again)
    assert not same(whole, plain), "it draws other random numbers"
