"""Labels copied back over episodes, and advantages, equal a plain reference; each step is learned once."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.rl.rollout import Batch, EpisodeBuffer, LabelReplay

GAMMA, LAMBDA, NOT_REACHED = 0.9, 0.8, 3


def make_buffer(steps, envs, hold, paid=False):
    options = {"players": torch.arange(envs), "hold": hold, "paid": paid, "device": torch.device("cpu")}
    return EpisodeBuffer(steps, envs, (1,), torch.float32, (), torch.int64, **options)


def play(buffer, rng, steps, envs, end_probability, first_id):
    """Play one random rollout in which each observation is the step's id; return a record for the reference."""
    buffer.start_rollout()
    record = []
    for t in range(steps):
        ids = torch.arange(first_id + t * envs, first_id + (t + 1) * envs, dtype=torch.float32)
        values = torch.from_numpy(rng.normal(size=envs)).float()
        buffer.add(t, ids[:, None], torch.zeros(envs, dtype=torch.int64), torch.zeros(envs))
        ended = rng.random(envs) < end_probability
        labels, rewards = rng.integers(0, 4, envs), rng.normal(size=envs) * ended
        bootstrap = rng.normal(size=envs) * ended * (rng.random(envs) < 0.3)
        row = steps + t
        buffer.values[row] = values
        buffer.ended[row] = torch.from_numpy(ended)
        buffer.labels[row] = torch.from_numpy(labels)
        buffer.rewards[row] = torch.from_numpy(rewards).float()
        buffer.bootstrap[row] = torch.from_numpy(bootstrap).float()
        record.append((ids.numpy(), values.numpy(), ended, labels, rewards, bootstrap))
    return record


def reference(records, env, last_value):
    """Return step id → (label or None, advantage, return if the end pays 1), computed one step at a time."""
    result, advantage, to_go, label, next_value = {}, 0.0, 0.0, None, last_value
    for ids, values, ended, labels, rewards, bootstrap in reversed(records):
        if ended[env]:
            advantage, to_go, label, next_value = 0.0, 0.0, int(labels[env]), bootstrap[env]
        delta = rewards[env] + GAMMA * next_value - values[env]
        advantage = delta + GAMMA * LAMBDA * advantage
        to_go = 1.0 if ended[env] else GAMMA * to_go
        result[int(ids[env])] = (label, advantage, to_go)
        next_value = values[env]
    return result


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.booleans(),
    st.integers(0, 999),
)
def test_against_the_reference(steps, envs, end_probability, hold, seed):
    rng, buffer, records, learned = np.random.default_rng(seed), make_buffer(steps, envs, hold), [], set()
    for rollout in range(4):
        records += play(buffer, rng, steps, envs, end_probability, rollout * steps * envs)
        last_values = torch.from_numpy(rng.normal(size=envs)).float()
        batch = buffer.finish_rollout(last_values, NOT_REACHED, GAMMA, LAMBDA)
        expected = {}
        for env in range(envs):
            # The advantage of a held step uses rewards up to now: those of at most two rollouts.
            expected |= reference(records[-2 * steps :], env, float(last_values[env]))
        for i, identity in enumerate(batch.obs.flatten().int().tolist()):
            assert identity not in learned, "learned twice"
            learned.add(identity)
            label, advantage, to_go = expected[identity]
            is_old = identity < rollout * steps * envs
            assert not (hold and label is None and not is_old), "a running episode was not held"
            assert batch.labels[i] == (NOT_REACHED if label is None else label)
            assert batch.advantages[i] == pytest.approx(advantage, abs=1e-4)
            if label is not None:
                assert batch.outcome_returns[i] == pytest.approx(to_go, abs=1e-5)
        waiting = set(range((rollout + 1) * steps * envs)) - learned
        unfinished = {i for i, (label, _, _) in expected.items() if label is None and i >= rollout * steps * envs}
        assert waiting == (unfinished if hold else set())


def test_lengths_of_episodes_that_span_rollouts():
    buffer = make_buffer(3, 2, hold=False)
    for rollout, ends in enumerate(([(1, 0), (2, 1)], [(0, 0), (2, 0), (2, 1)])):
        buffer.start_rollout()
        for step, env in ends:
            buffer.ended[3 + step, env] = True
        lengths = buffer.lengths()
        expected = ([2, 3], [2, 2, 3])[rollout]
        assert [int(lengths[step, env]) for step, env in ends] == expected
    buffer.discard()
    buffer.start_rollout()
    buffer.ended[3 + 1, 0] = True
    assert buffer.lengths()[1, 0] == 2, "counted from before the reset"


def test_a_held_episode_is_learned_under_its_true_label():
    buffer = make_buffer(2, 1, hold=True)
    rng = np.random.default_rng(0)
    play(buffer, rng, 2, 1, 0.0, 0)
    assert len(buffer.finish_rollout(torch.zeros(1), NOT_REACHED, GAMMA, LAMBDA).labels) == 0
    play(buffer, rng, 2, 1, 0.0, 2)
    buffer.ended[2], buffer.labels[2], buffer.rewards[2] = True, 1, 1.0
    batch = buffer.finish_rollout(torch.zeros(1), NOT_REACHED, GAMMA, LAMBDA)
    assert batch.obs.flatten().tolist() == [0, 1, 2] and batch.labels.tolist() == [1, 1, 1]
    torch.testing.assert_close(batch.outcome_returns, torch.tensor([GAMMA**2, GAMMA, 1.0]))


def replay_batch(labels, first=0):
    n = len(labels)
    return Batch(
        obs=torch.arange(first, first + n, dtype=torch.float32)[:, None],
        actions=torch.zeros(n, dtype=torch.int64),
        labels=torch.tensor(labels),
        players=torch.full((n,), 2),
        log_probs=torch.zeros(n),
        advantages=torch.zeros(n),
        returns=torch.zeros(n),
        outcome_returns=torch.arange(first, first + n).float(),
    )


def test_replay_keeps_the_latest_labelled_steps_only():
    replay = LabelReplay(2, 3, (1,), torch.float32, (), torch.int64, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    replay.add(replay_batch([2, 3, 3]))
    assert replay.sample(4, generator).stored.tolist() == [False, False]
    replay.add(replay_batch([0, 2, 0, 0, 0, 3], first=10))  # label 0: steps 10, 12, 13, 14; capacity 3
    obs, _, returns, stored = replay.sample(50, generator)
    assert set(obs[0].flatten().tolist()) == {12, 13, 14} and stored.tolist() == [True, False]
    assert torch.equal(obs[0].flatten(), returns[0])
    replay.add(replay_batch([1], first=20))
    obs, _, _, stored = replay.sample(50, generator)
    assert stored.all() and set(obs[0].flatten().tolist()) <= {12, 13, 14} and set(obs[1].flatten().tolist()) == {20}
