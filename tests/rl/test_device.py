"""A learner with a tensor environment gets the same bits as with numpy; acting and learning can be compiled."""

import pytest
import torch
from stable_baselines3.common.utils import LinearSchedule

from routed_rl.envs import DiamondGhostTensorVecEnv, DiamondGhostVecEnv
from routed_rl.rl import Overseer, RoutedPPO, RoutedREINFORCE

OVERSEER = {"ghost": -1, "diamond": 1}


def learner(env, kind, **options):
    policy = "PaperPolicy" if kind is RoutedREINFORCE else "MlpPolicy"
    defaults = {"n_steps": 8, "seed": 0, "device": "cpu", "replay_steps": 2, "replay_batch": 16}
    return kind(policy, env, Overseer(OVERSEER), **defaults | options)


def same(a, b):
    pairs = zip(a.policy.state_dict().values(), b.policy.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RoutedPPO, {"batch_size": 128}),
        (RoutedPPO, {"batch_size": 100, "unfinished": "hold"}),
        (RoutedREINFORCE, {}),
    ],
)
def test_tensors_teach_what_numpy_teaches(kind, options, tmp_path):
    world = {"oversight": 0.3, "max_steps": 5}  # some episodes are truncated, others cut by the rollout's end
    plain = learner(DiamondGhostVecEnv(64, **world), kind, **options)
    tensors = learner(DiamondGhostTensorVecEnv(64, "cpu", **world), kind, **options)
    for model in (plain, tensors):
        model.learn(3 * 512)
    assert same(plain, tensors)
    tensors.save(tmp_path / "model")
    env = DiamondGhostTensorVecEnv(64, "cpu", **world)
    again = kind.load(tmp_path / "model", env=env, device="cpu", force_reset=False)
    for model in (plain, again):
        model.learn(2 * 512, reset_num_timesteps=False)
    assert same(plain, again), "a loaded learner continues where the saved one stopped"


def test_tensors_that_do_not_fit_are_refused():
    env = DiamondGhostTensorVecEnv(4, "cpu")
    other = RoutedPPO("MlpPolicy", env, Overseer({"diamond": 1, "ghost": -1}), n_steps=8, batch_size=8, device="cpu")
    with pytest.raises(ValueError, match=r"as the overseer does, \['diamond', 'ghost'\]"):
        other.learn(32)
    elsewhere = learner(DiamondGhostTensorVecEnv(4, "cpu"), RoutedPPO, batch_size=8)
    elsewhere.env.device = torch.device("meta")
    with pytest.raises(ValueError, match=r"on meta, the learner is on cpu"):
        elsewhere.learn(32)


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
