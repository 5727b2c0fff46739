"""``reward="environment"``: unlabelled episodes pay what the environment pays; labels do what each method says."""

import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import VecEnvWrapper

from routed_rl.envs import DiamondGhostVecEnv
from routed_rl.rl import METHODS, Overseer, RoutedPPO
from routed_rl.routing import LabelNoise

from .test_ppo import learn
from .test_rollout import make_buffer
from .worlds import VALUES, fingerprint, small_model

GHOST, DIAMOND, UNSEEN, NONE = range(4)
P = 0.25
ENVIRONMENT = [(0, 1)] * 4
BY_VALUE = [(-1, 0), (1, 0), (0, 0), (0, 0)]
PAYS = {  # by label (ghost, diamond, unseen, none): reward at the end, weight of the environment's reward at each step
    "routing": ENVIRONMENT,
    "naive": [(-1, 0), (1, 0), (0, 1), (0, 1)],
    "penalty": [(-1 / P, -(1 - P) / P), (1, 0), (0, 1), (0, 1)],
    "screening": ENVIRONMENT,
    "filtering": BY_VALUE,
    "reward-model": BY_VALUE,
    "oracle": BY_VALUE,
    "no-gate": ENVIRONMENT,
    "no-routing": ENVIRONMENT,
    "no-gate-no-routing": ENVIRONMENT,
}
BY_REWARD = [method for method in METHODS if PAYS[method] != BY_VALUE]


class DenseRewards(VecEnvWrapper):
    """Pays random rewards at every step, of one sequence; unseen outcomes are replaced by random ones."""

    def __init__(self, venv, outcomes=0):
        super().__init__(venv)
        self.rewards, self.outcomes = np.random.default_rng(0), np.random.default_rng(outcomes)
        self.paid = []

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        obs, _, dones, infos = self.venv.step_wait()
        infos = [dict(info) for info in infos]
        for i in np.flatnonzero(dones):
            if not infos[i]["overseen"] and infos[i]["outcome"] is not None:
                infos[i]["outcome"] = str(self.outcomes.choice(list(VALUES)))
        self.paid.append(self.rewards.normal(size=self.num_envs).astype(np.float32))
        return obs, self.paid[-1], dones, infos


@pytest.mark.parametrize("method", METHODS)
def test_what_each_label_pays(method):
    overseer = Overseer(VALUES, method, reward="environment", oversight=P)
    assert list(zip(overseer.rewards.tolist(), overseer.shares.tolist(), strict=True)) == PAYS[method]
    usual = Overseer(VALUES, method, oversight=P)
    assert not usual.shares.any() and torch.equal(usual.loss_weights, overseer.loss_weights)


@pytest.mark.parametrize("oversight", [0.01, 0.25, 1.0])
def test_a_penalty_pays_the_value_on_average(oversight):
    overseer = Overseer({"bad": -0.5, "good": 1}, "penalty", reward="environment", oversight=oversight)
    rewards, shares = overseer.rewards.double(), overseer.shares.double()
    assert oversight * rewards[0] + (1 - oversight) * rewards[2] == pytest.approx(-0.5, abs=1e-5)
    assert oversight * shares[0] + (1 - oversight) * shares[2] == pytest.approx(0.0, abs=1e-5)


def test_a_module_that_acts_alone_is_paid_by_label():
    table, usual = (Overseer(VALUES, reward=r).label_table(torch.device("cpu")) for r in ("environment", "outcome"))
    assert torch.equal(table.rewards[:, :-1], usual.rewards[:, :-1])
    assert table.shares.tolist() == [[0.0, 0.0, 1.0]] * 5


@pytest.mark.parametrize("hold", [False, True])
def test_rewards_by_step_against_the_reference(hold):
    """Episodes span two rollouts: a held step is paid by the label that its episode gets at last."""
    steps, envs, rng = 4, 3, np.random.default_rng(0)
    buffer = make_buffer(steps, envs, hold, paid=True)
    ends, shares = (torch.from_numpy(rng.normal(size=(4, envs))).float() for _ in range(2))  # player e in environment e
    seen = {name: [] for name in ("ended", "labels", "paid")}
    for _ in range(3):
        buffer.start_rollout()
        for step in range(steps):
            seen["ended"].append(rng.random(envs) < 0.3)
            seen["labels"].append(rng.integers(0, 4, envs))
            seen["paid"].append(rng.normal(size=envs).astype(np.float32))
            buffer.add_rewards(step, seen["paid"][-1])
            buffer.ended[steps + step] = torch.from_numpy(seen["ended"][-1])
            buffer.labels[steps + step] = torch.from_numpy(seen["labels"][-1])
        buffer.pay(ends, shares, NONE)
        last = {name: np.array(rows[-2 * steps if hold else -steps :]) for name, rows in seen.items()}
        for env in range(envs):
            label, expected = NONE, []
            for ended, own, paid in zip(*(rows[::-1, env] for rows in last.values()), strict=True):
                label = own if ended else label
                expected.append(ends[own, env] * ended + shares[label, env] * paid)
            got = buffer.rewards[-len(expected) :, env].flip(0)
            torch.testing.assert_close(got, torch.tensor(expected))


@pytest.mark.parametrize("solo", [0.0, 0.5])
@pytest.mark.parametrize("method", BY_REWARD)
def test_the_learner_is_paid_as_documented(method, solo):
    env = DenseRewards(DiamondGhostVecEnv(16, oversight=0.5))
    overseer = Overseer(VALUES, method, reward="environment", oversight=0.5)
    model = small_model(env, overseer=overseer, solo=solo)
    (row,) = learn(model, 128)
    new, (ends, shares) = model.buffer.rewards[8:], (overseer.rewards, overseer.shares)
    alone = model.buffer.players < len(overseer.modules)
    for e in range(16):
        label, expected = NONE, []
        for ended, own, paid in zip(
            model.buffer.ended[8:, e].tolist()[::-1],
            model.buffer.labels[8:, e].tolist()[::-1],
            [rewards[e] for rewards in env.paid[::-1]],
            strict=True,
        ):
            label = own if ended else label
            if alone[e]:
                expected.append(ended * {UNSEEN: 0, NONE: 0}.get(own, 1 if own == model.buffer.players[e] else -1))
            else:
                expected.append(ended * float(ends[own]) + float(shares[label]) * paid)
        torch.testing.assert_close(new[:, e].flip(0), torch.tensor(expected, dtype=torch.float32))
    assert row["rollout/ep_training_reward"] == pytest.approx(float(new.sum()) / row["rollout/episodes"])


@pytest.mark.parametrize("unfinished", ["unlabelled", "hold"])
@pytest.mark.parametrize("method", BY_REWARD)
def test_unseen_outcomes_change_nothing_the_learner_computes(method, unfinished):
    results = []
    for seed in (1, 2):
        env = DenseRewards(DiamondGhostVecEnv(16, oversight=0.5), seed)
        overseer = Overseer(VALUES, method, reward="environment", noise=LabelNoise(0.1, 0.1), oversight=0.5)
        model = small_model(env, overseer=overseer, unfinished=unfinished, solo=0.25)
        results.append((learn(model, 3 * 128), fingerprint(model)))
    assert results[0] == results[1]


@pytest.mark.parametrize("method", [method for method in METHODS if method not in BY_REWARD])
def test_methods_that_use_values_do_not_change(method):
    models = [small_model(overseer=Overseer(VALUES, method, reward=reward)) for reward in ("outcome", "environment")]
    assert learn(models[0], 3 * 128) == learn(models[1], 3 * 128)
    assert fingerprint(models[0]) == fingerprint(models[1])


def test_rewards_are_stored_only_where_they_are_paid():
    assert "buffer.paid" not in fingerprint(small_model())
    assert "buffer.paid" in fingerprint(small_model(overseer=Overseer(VALUES, reward="environment")))


@pytest.mark.parametrize("unfinished", ["unlabelled", "hold"])
def test_training_goes_on_to_the_same_bits(unfinished, tmp_path):
    def new(env):
        overseer = Overseer(VALUES, "naive", reward="environment")
        return small_model(env, overseer=overseer, unfinished=unfinished)

    whole, half = new(DiamondGhostVecEnv(16, oversight=0.3)), new(DiamondGhostVecEnv(16, oversight=0.3))
    for model in (whole, half):
        model.learn(3 * 128)
    whole.learn(3 * 128, reset_num_timesteps=False)
    half.save(tmp_path / "model")
    again = RoutedPPO.load(tmp_path / "model", DiamondGhostVecEnv(16, oversight=0.3), device="cpu", force_reset=False)
    again.learn(3 * 128, reset_num_timesteps=False)
    assert again.overseer.reward == "environment"
    assert fingerprint(again) == fingerprint(whole)


def test_another_word_is_refused():
    with pytest.raises(ValueError, match="reward must be 'outcome' or 'environment', got 'shaped'"):
        Overseer(VALUES, reward="shaped")
