"""``solo``: in a share of the environments one module acts alone, and learns alone."""

import numpy as np
import pytest
import torch

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.rl import Overseer

from .test_ppo import learn
from .worlds import VALUES, small_model

GHOST, DIAMOND, GATE = 0, 1, 2


@pytest.mark.parametrize(
    ("solo", "envs", "players"),
    [
        (0.0, 4, [2, 2, 2, 2]),
        (0.5, 4, [0, 1, 2, 2]),
        (1.0, 4, [0, 0, 1, 1]),
        (0.5, 7, [0, 1, 2, 2, 2, 2, 2]),
        (0.5, 1, [2]),
        (0.29, 100, [0] * 14 + [1] * 14 + [2] * 72),
        (0.58, 100, [0] * 29 + [1] * 29 + [2] * 42),
    ],
)
def test_each_module_has_the_same_number_of_environments(solo, envs, players):
    model = small_model(DiamondGhostVecEnv(envs), solo=solo)
    assert model.buffer.players.tolist() == players


def test_a_method_that_does_not_route_has_no_solo_environments():
    assert small_model(method="no-routing", solo=0.5).buffer.players.tolist() == [2] * 16


def test_a_solo_module_acts_as_if_steered_to():
    model = small_model(solo=1.0)
    obs = torch.from_numpy(model.env.reset())
    played = model.policy.get_distribution(obs, model.buffer.players).distribution.logits
    for module, name in enumerate(VALUES):
        rows = model.buffer.players == module
        with model.policy.steered(name):
            alone = model.policy.get_distribution(obs[rows]).distribution.logits
        torch.testing.assert_close(played[rows], alone)


@pytest.mark.parametrize(
    ("label", "player", "reward", "weight"),
    [
        (GHOST, GHOST, 1, 1),
        (DIAMOND, GHOST, -1, 1),
        (GHOST, DIAMOND, -1, 1),
        (2, GHOST, 0, 0),  # an outcome that nobody saw
        (3, GHOST, 0, 1),  # no outcome
        (4, GHOST, 1, 1),  # an outcome that nobody saw, with a novel end
        (4, DIAMOND, 1, 1),
        (4, GATE, 1, 1),
        (GHOST, GATE, 1, 1),
        (2, GATE, 1, 1),
    ],
)
def test_what_an_episode_pays_and_whom_it_teaches(label, player, reward, weight):
    table = Overseer(VALUES).label_table(torch.device("cpu"))
    assert (table.rewards[label, player], table.loss[label, player]) == (reward, weight)
    if player != GATE:
        taught = [float(module == player) * weight for module in (GHOST, DIAMOND)]
        assert table.routes[label, player].tolist() == [*taught, 0.0]


@pytest.mark.parametrize("module", VALUES)
def test_no_other_module_learns_from_a_solo_episode(module):
    """Rollouts of one module alone change no bit of the other module. The gate learns their labels."""
    model = small_model(solo=1.0, replay_steps=0)
    model._players[:] = list(VALUES).index(module)
    before = {name: [p.clone() for p in model.policy.module_parameters(name)] for name in VALUES}
    model.learn(2 * 128)
    for name, start in before.items():
        now = model.policy.module_parameters(name)
        assert all(torch.equal(a, b) for a, b in zip(now, start, strict=True)) == (name != module)


def test_the_ratio_of_the_first_step_is_one():
    """The stored log-probability is that of the player that acted: PPO's ratio starts at 1 in every environment."""
    model = small_model(solo=0.5, n_epochs=1, batch_size=None)
    (row,) = learn(model, 128)
    assert row["train/approx_kl"] == pytest.approx(0.0, abs=1e-7) and row["train/policy_loss"] != 0


def test_solo_out_of_range_is_refused():
    for value in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match="solo must be"):
            small_model(solo=value)
