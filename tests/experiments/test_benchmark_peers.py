"""The comparison with peers: JAX's rules and losses equal ours, and what is not installed is a row that says so."""

import json
import os
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from routed_rl.envs import dynamics, make_world
from routed_rl.experiments.benchmarks import peers, peers_torch, training
from routed_rl.experiments.cli import main
from routed_rl.experiments.common.agents import options as commands
from routed_rl.rl.rollout import Batch, Replayed

TINY = {"n_envs": 4, "n_steps": 4, "hidden": 8, "batch_size": 8, "replay_batch": 4, "replay_capacity": 5}
STEPS, ENVS = 2000, 8


@pytest.fixture
def tiny(monkeypatch):
    train = commands.PRESETS["quick"]
    monkeypatch.setitem(commands.PRESETS, "quick", replace(train, learner=replace(train.learner, **TINY)))
    monkeypatch.setitem(training.UPDATES, "quick", 1)
    for name, size in (("MOST_UPDATES", 2), ("BATCH", 3), ("STEPS", 2)):
        monkeypatch.setattr(peers, name, size)
    monkeypatch.setattr(peers_torch, "EPISODES", 20)
    # Compiling takes most of a minute; test_the_plain_loop_learns_what_it_should runs the same functions uncompiled.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.fixture
def jax_modules():
    """The modules of the JAX programs, imported as the benchmark imports them."""
    pytest.importorskip("jax")
    with peers.one_core():
        from routed_rl.experiments.benchmarks import peers_jax, peers_jax_world
    return SimpleNamespace(program=peers_jax, world=peers_jax_world)


def test_the_rules_in_jax_are_ours(jax_modules):
    """The same actions from the same states give the same observations, rewards and ends, in numpy and in torch."""
    world = make_world(oversight=0.5, max_steps=12)
    rules = jax_modules.world.Rules(world)
    rng = np.random.default_rng(0)
    key = np.arange(ENVS)
    state = dynamics.reset(world, key, np.zeros_like(key))
    ends = 0
    for _ in range(STEPS):
        actions = rng.integers(4, size=ENVS)
        overseen = state.oversight[np.arange(ENVS)[:, None], state.terminals]
        theirs = jax_modules.world.State(*(array.astype(np.int32) for array in state[2:5]), overseen)
        np.testing.assert_array_equal(rules.observe(theirs), dynamics.observe(world, state))
        moved, transition = rules.step(theirs, actions)
        tensors = type(state)(*map(torch.from_numpy, state))
        _, of_torch = dynamics.step(world, tensors, torch.from_numpy(actions))
        state, ours = dynamics.step(world, state, actions)
        for name in ours._fields:
            np.testing.assert_array_equal(getattr(transition, name), getattr(ours, name), err_msg=name)
            np.testing.assert_array_equal(getattr(of_torch, name), getattr(ours, name), err_msg=name)
        np.testing.assert_array_equal(rules.observe(moved), dynamics.observe(world, state))
        np.testing.assert_array_equal(moved.steps, state.steps)
        done = ours.terminated | ours.truncated
        ends += done.sum()
        fresh = dynamics.reset(world, key[done], state.episode[done] + 1)
        state = dynamics.put(state, np.flatnonzero(done), fresh) if done.any() else state
    assert ends > STEPS / 2


def test_first_states_in_jax_are_distinct_uniform_cells(jax_modules):
    rules = jax_modules.world.Rules(make_world(size=2, oversight={"ghost": 0.0, "diamond": 0.25}))
    draws = np.random.default_rng(0).random((24_000, rules.n_draws)).astype(np.float32)
    state = rules.reset(draws)
    cells = np.concatenate([np.asarray(state.agent)[:, None], state.terminals], axis=1)
    _, counts = np.unique(cells @ (16, 4, 1), return_counts=True)
    assert len(counts) == 24 and abs(counts - 1000).max() < 150, "24 ways to place three objects in four cells"
    np.testing.assert_allclose(np.asarray(state.overseen).mean(axis=0), [0, 0.25], atol=0.01)
    renewed = rules.renew(state, np.arange(24_000) < 5, draws[::-1])
    assert (np.asarray(renewed.agent)[5:] == np.asarray(state.agent)[5:]).all()
    with pytest.raises(ValueError, match="plain"):
        jax_modules.world.Rules(make_world(walls=[(1, 1)]))


def same_gradients(policy, loss, theirs):
    """Compare the gradient of a torch loss with gradients in JAX, by parameter; no gradient counts as zero."""
    policy.optimizer.zero_grad()
    loss.backward()
    for name, parameter in policy.named_parameters():
        ours = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        np.testing.assert_allclose(np.asarray(theirs[name]).T, ours.numpy(), atol=1e-5, err_msg=name)
    assert any(abs(np.asarray(gradient)).max() > 1e-3 for gradient in theirs.values())


@pytest.mark.parametrize("routed", [False, True])
def test_the_loss_in_jax_has_our_gradient(tiny, jax_modules, routed):
    import jax

    model, learner = (ours := peers_torch.Ours(routed=routed)).model, ours.config["learner"]
    rng, n = np.random.default_rng(0), 64
    with torch.no_grad():  # the first output layers are near zero, and so would be all gradients
        for parameter in (*model.policy.action_net.parameters(), *model.policy.value_net.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    floats = {"log_probs": rng.normal(-1.4, 0.3, n), "advantages": rng.normal(size=n), "returns": rng.normal(size=n)}
    arrays = {
        "obs": rng.integers(2, size=(n, 100)).astype(np.float32),
        "actions": rng.integers(4, size=n),
        "labels": rng.integers(4, size=n),
        **{name: column.astype(np.float32) for name, column in floats.items()},
        "outcome_returns": rng.random(n).astype(np.float32),
    }
    batch = Batch(**{name: torch.from_numpy(a) for name, a in arrays.items()}, players=torch.full((n,), 2))
    loss, taught, _ = model.loss(batch, learner["entropy"][1])
    assert taught.all()
    params = jax_modules.program.weights(model.policy)
    function = partial(jax_modules.program.loss, learner, routed)
    value, theirs = jax.value_and_grad(function)(params, jax_modules.program.Batch(**arrays))
    assert float(value) == pytest.approx(loss.item(), abs=1e-5)
    same_gradients(model.policy, loss, theirs)


def test_the_replay_loss_in_jax_has_our_gradient(tiny, jax_modules):
    import jax

    model, learner = (ours := peers_torch.Ours(routed=True)).model, ours.config["learner"]
    rng = np.random.default_rng(0)
    obs, actions = rng.integers(2, size=(2, 16, 100)).astype(np.float32), rng.integers(4, size=(2, 16))
    returns = rng.random((2, 16)).astype(np.float32)
    sample = Replayed(*map(torch.from_numpy, (obs, actions, returns)), stored=torch.tensor([True, True]))
    loss, _ = model.replay_loss(sample)
    function = partial(jax_modules.program.replay_loss, learner)
    theirs = jax.grad(function)(jax_modules.program.weights(model.policy), obs, actions, returns)
    same_gradients(model.policy, loss, theirs)


def test_an_optimizer_step_in_jax_is_ours(tiny, jax_modules):
    """Two steps with clipped gradients; a parameter without a gradient stays as it is."""
    import jax.numpy as jnp

    model, learner = (ours := peers_torch.Ours(routed=False)).model, ours.config["learner"]
    params = jax_modules.program.weights(model.policy)
    zeros = {name: jnp.zeros_like(value) for name, value in params.items()}
    adam = jax_modules.program.Adam(zeros, zeros, dict.fromkeys(params, jnp.zeros((), jnp.int32)))
    rng = np.random.default_rng(0)
    for _ in range(2):
        grads = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in params.items()}
        del grads["value_net.bias"]
        params, adam = jax_modules.program.adam_step(learner, params, adam, grads)
        for name, parameter in model.policy.named_parameters():
            parameter.grad = torch.from_numpy(grads[name].T.copy()) if name in grads else None
        torch.nn.utils.clip_grad_norm_(model.policy.parameters(), learner["max_grad_norm"])
        model.policy.optimizer.step()
    for name, parameter in model.policy.named_parameters():
        np.testing.assert_allclose(np.asarray(params[name]).T, parameter.detach(), atol=1e-5, err_msg=name)


def test_replay_in_jax_keeps_the_newest_steps(tiny, jax_modules):
    learner = peers_torch.config(routed=True)["learner"]
    program = jax_modules.program.Program(
        peers_torch.Ours(routed=True).model.policy, make_world(), learner, routed=True
    )
    replay, stored = program.training.replay, [[], []]
    rng = np.random.default_rng(0)
    for start in range(0, 90, 9):
        labels, numbers = rng.integers(4, size=9), np.arange(start, start + 9)
        obs = np.repeat(numbers[:, None], 100, axis=1).astype(np.float32)
        columns = dict.fromkeys(("log_probs", "advantages", "returns"), numbers)
        batch = jax_modules.program.Batch(
            obs=obs, actions=numbers, labels=labels, outcome_returns=numbers.astype(np.float32), **columns
        )
        replay = program._store(replay, batch)
        for label in (0, 1):
            stored[label] += numbers[labels == label].tolist()
            newest = stored[label][-5:]
            assert int(replay.count[label]) == len(stored[label])
            kept = np.asarray(replay.actions)[label, : len(newest)]
            assert sorted(kept.tolist()) == newest and (np.asarray(replay.obs)[label, : len(newest), 7] == kept).all()


def test_the_plain_loop_does_what_ours_does(tiny):
    """The loss and the advantages of the compiled loop, uncompiled, are ours."""
    ours, loop = peers_torch.Ours(routed=False), peers_torch.CompiledLoop()
    rng = torch.Generator().manual_seed(0)
    loop.network = peers_torch.Network(ours.model.policy)
    obs, actions = torch.randint(2, (16, 100), generator=rng).float(), torch.randint(4, (16,), generator=rng)
    log_probs, advantages, returns = torch.randn((3, 16), generator=rng)
    labels = torch.zeros(16, dtype=torch.int64)
    batch = Batch(obs, actions, labels, labels + 2, log_probs, advantages, returns, returns)
    loss, _, _ = ours.model.loss(batch, ours.config["learner"]["entropy"][1])
    torch.testing.assert_close(loop._loss(obs, actions, log_probs, advantages, returns), loss)

    buffer = ours.model.buffer
    buffer.start_rollout()
    new = slice(buffer.n_steps, None)
    shape = buffer.rewards[new].shape
    for name in ("rewards", "values"):
        getattr(buffer, name)[new] = torch.randn(shape, generator=rng)
    buffer.ended[new] = torch.rand(shape, generator=rng) < 0.3
    cut = (torch.rand(shape, generator=rng) < 0.5) * buffer.ended[new]
    buffer.bootstrap[new] = cut * torch.randn(shape, generator=rng)
    last = torch.randn(shape[1], generator=rng)
    gamma, decay = (ours.config["learner"][name] for name in ("gamma", "gae_lambda"))
    expected = buffer.finish_rollout(last, 3, gamma, decay).advantages.view(shape)
    columns = (buffer.rewards[new], buffer.values[new], (~buffer.ended[new]).float(), buffer.bootstrap[new])
    torch.testing.assert_close(loop._advantages(*columns, last), expected)


def test_returns_are_discounted_from_the_first_step():
    returns = peers_torch.Returns(2, 0.5)
    returns.add(np.array([1.0, 0.0]), np.array([False, True]))
    returns.add(np.array([1.0, 1.0]), np.array([True, True]))
    assert returns.take() == (1.5 + 0 + 1, 3) and returns.take() == (0, 0)


def test_the_target_is_reached_by_the_newest_episodes():
    class Improving:
        updates = 0

        def train(self, updates):
            self.updates += updates

        def returns(self):
            return 0.2 * self.updates * 1500, 1500

    progress = peers.Progress(Improving())
    while not progress.over:
        progress.update()
    row = progress.row(10)
    assert row["env_steps"] == 30, "0.4 and 0.6 are the newest 3,000 episodes, and 0.2 is forgotten"
    assert row["seconds"] >= 0 and row["compile_seconds"] >= 0


def test_every_peer_is_a_row(tiny, capsys, monkeypatch):
    """What is installed is measured, what is not says how to install it, and what fails says why."""

    def fails():
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setitem(peers.LEARNERS, "broken", peers.Case(fails, peers.OURS))
    monkeypatch.setitem(peers.LEARNERS, "unknown", peers.Case(fails, peers.OURS, ("not_a_package",)))
    cores, flags = os.sched_getaffinity(0), os.environ.get("XLA_FLAGS")
    main(["benchmark", "--peers", "--repeats", "1", "--json"])
    assert (os.sched_getaffinity(0), os.environ.get("XLA_FLAGS")) == (cores, flags), "as before"
    results = json.loads(capsys.readouterr().out)
    assert results["learners"].keys() == peers.LEARNERS.keys()
    assert results["peer_environments"].keys() == peers.ENVIRONMENTS.keys()
    assert results["learners"]["broken"] == {"reason": "failed: RuntimeError: no compiler"}
    assert results["learners"]["unknown"] == {"reason": "not installed: pip install 'routed-rl[peers]'"}
    for part, cases in (("learners", peers.LEARNERS), ("peer_environments", peers.ENVIRONMENTS)):
        for name, row in results[part].items():
            if name not in ("broken", "unknown"):
                assert row.get("reason") == cases[name].missing, name
                assert "reason" in row or min(row["median"], row["times_ours"]) > 0
    assert results["learners"][peers.OURS]["times_ours"] == 1

    monkeypatch.setattr(peers, "measure", lambda *_: results)
    main(["benchmark", "--peers", "--repeats", "1"])
    shown = capsys.readouterr().out
    assert "unknown: not installed: pip install 'routed-rl[peers]'" in shown and "speed / ours" in shown
    with pytest.raises(SystemExit):
        main(["benchmark", "--peers", "--runs", "x"])
    assert "--runs" in capsys.readouterr().err
