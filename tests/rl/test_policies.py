"""The routed policy: one forward pass with per-sample routes, and steering."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from routed_rl.rl import METHODS, PaperPolicy, RoutedActorCriticPolicy
from routed_rl.rl.networks import PointwiseConv

from .worlds import refused, small_model

MODULES = ("a", "b", "c")


def make_policy(modules=MODULES, **options):
    torch.manual_seed(0)
    space = gym.spaces.Box(0, 1, (6,), np.float32)
    return RoutedActorCriticPolicy(
        space, gym.spaces.Discrete(4), lambda _: 1e-3, modules=modules, hidden=(8, 8), **options
    )


@pytest.fixture
def obs():
    return torch.rand(10, 6, generator=torch.Generator().manual_seed(1))


def logits(policy, obs):
    return policy.get_distribution(obs).distribution.logits


@pytest.mark.parametrize("learned_gate", [True, False])
def test_routing_does_not_change_the_forward_pass(obs, learned_gate):
    policy = make_policy(learned_gate=learned_gate)
    actions = torch.arange(10) % 4
    values, log_probs, entropy, gate_logits = policy.evaluate_routed(obs, actions, torch.randn(10, 4))
    plain_values, plain_log_probs, plain_entropy = policy.evaluate_actions(obs, actions)
    torch.testing.assert_close(values, plain_values.flatten())
    torch.testing.assert_close(log_probs, plain_log_probs)
    torch.testing.assert_close(entropy, plain_entropy)
    assert (gate_logits is None) == (not learned_gate)


def test_one_pass_with_routes_equals_a_pass_per_sample(obs):
    """The gradient of a routed batch equals, per module, the sum of one-sample gradients times their weights."""
    policy = make_policy()
    actions, routes = torch.arange(10) % 4, torch.tensor([-0.5, 0.0, 1.0, 2.0])[torch.randint(4, (10, 4))]
    policy.evaluate_routed(obs, actions, routes)[1].sum().backward()
    names = (*MODULES, "gate")
    got = {name: [p.grad.clone() for p in policy.module_parameters(name)] for name in names}
    output = policy.action_net.weight.grad.clone()
    for column, name in enumerate(names):
        expected = [torch.zeros_like(p) for p in policy.module_parameters(name)]
        for i in range(10):
            log_prob = policy.evaluate_actions(obs[i : i + 1], actions[i : i + 1])[1].sum()
            for total, grad in zip(
                expected, torch.autograd.grad(log_prob, policy.module_parameters(name)), strict=True
            ):
                total += routes[i, column] * grad
        for grad, total in zip(got[name], expected, strict=True):
            torch.testing.assert_close(grad, total)
    (unrouted,) = torch.autograd.grad(policy.evaluate_actions(obs, actions)[1].sum(), policy.action_net.weight)
    torch.testing.assert_close(output, unrouted)  # the shared output layer learns from every sample


@pytest.mark.parametrize("learned_gate", [True, False])
@pytest.mark.parametrize("gone", [("a",), ("b",), ("a", "c")])
def test_ablation_equals_physical_removal(obs, gone, learned_gate):
    policy = make_policy(learned_gate=learned_gate)
    rest = [i for i, name in enumerate(MODULES) if name not in gone]
    smaller = make_policy([MODULES[i] for i in rest], learned_gate=learned_gate)
    smaller.action_net.load_state_dict(policy.action_net.state_dict())
    for new, old in enumerate(rest):
        smaller.mlp_extractor.experts[new].load_state_dict(policy.mlp_extractor.experts[old].state_dict())
    if smaller.mlp_extractor.gate is not None:
        weights = policy.mlp_extractor.gate.state_dict()
        last = [name for name in weights if name.startswith("1.")]
        smaller.mlp_extractor.gate.load_state_dict(weights | {name: weights[name][rest] for name in last})
    policy.ablate(*gone)
    assert torch.equal(logits(policy, obs), logits(smaller, obs))


def test_of_two_modules_ablating_one_is_choosing_the_other(obs):
    policy = make_policy(("ghost", "diamond"))
    policy.ablate("ghost")
    ablated = logits(policy, obs)
    policy.steer("diamond")
    assert torch.equal(ablated, logits(policy, obs))


def test_steering_is_a_mix_of_module_outputs(obs):
    policy = make_policy()
    latents = [expert(obs) for expert in policy.mlp_extractor.experts]
    policy.steer({"a": 0.8, "c": 0.2})
    expected = torch.log_softmax(policy.action_net(0.8 * latents[0] + 0.2 * latents[2]), dim=-1)
    torch.testing.assert_close(logits(policy, obs), expected)
    policy.steer("b")
    torch.testing.assert_close(logits(policy, obs), torch.log_softmax(policy.action_net(latents[1]), dim=-1))


def test_what_is_ablated_stays_so_until_it_is_brought_back(obs):
    policy = make_policy()
    plain = logits(policy, obs)
    policy.ablate("a")
    policy.ablate("b")
    assert policy.steering == {"ablated": ["a", "b"]}
    policy.steer("c")
    saved = policy.steering
    assert saved == {"ablated": ["a", "b"], "mix": {"a": 0.0, "b": 0.0, "c": 1.0}}
    policy.unsteer()
    assert policy.steering == {} and torch.equal(logits(policy, obs), plain)
    policy.set_steering(saved)
    assert policy.steering == saved


def test_steered_blocks_nest_and_restore(obs):
    policy = make_policy()
    plain = logits(policy, obs)
    with policy.steered("a"):
        inner = policy.steering
        with policy.steered(ablate="a"):
            assert policy.steering == {"ablated": ["a"]}
        with pytest.raises(ValueError, match="'z'"), policy.steered("z"):
            pass
        with policy.steered():
            assert torch.equal(logits(policy, obs), plain)
        assert policy.steering == inner
    assert policy.steering == {} and torch.equal(logits(policy, obs), plain)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.steer("ghots"), "'ghots'.*a, b, c"),
        (lambda p: p.steer({"a": 0.8, "b": 0.1}), "sum to 1"),
        (lambda p: p.steer({"a": 1.5, "b": -0.5}), "at least 0"),
        (lambda p: p.steer({"a": float("nan")}), "at least 0|sum"),
        (lambda p: p.ablate("a", "b", "c"), "no module"),
        (lambda p: p.ablate("z"), "'z'"),
        (lambda p: p.ablate(), "at least one module"),
        (lambda p: [p.ablate(name) for name in "abc"], "no module"),
        (lambda p: [p.ablate("a"), p.steer({"a": 0.5, "b": 0.5})], "ablated"),
        (lambda p: p.steer("a", avoid={"z": 1.0}), "'z'"),
        (lambda p: p.steer("a", avoid={"b": -1.0}), "avoid.*-1"),
        (lambda p: p.steer("a", avoid={"b": float("inf")}), "avoid.*inf"),
        (lambda p: [p.ablate("b"), p.steer("a", avoid={"b": 1.0})], "avoid.*ablated"),
        (lambda p: p.steer("a", avoid={"a": 1.0}), "choose and avoid.*'a'"),
        (lambda p: p.steer("a", temperature=0.0), "temperature.*0"),
        (lambda p: p.steer("a", temperature=float("nan")), "temperature.*nan"),
        (lambda p: p.steer("a", temperature="hot"), "temperature.*'hot'"),
        (lambda p: p.steer("a", avoid="b"), "avoid must be module → strength.*'b'"),
        (lambda p: p.steer("a", avoid={"b": "much"}), "avoid.*'much'"),
        (lambda p: p.steer(None), r"steer\(\) needs a module.*None.*unsteer"),
        (lambda p: p.steer({"a": "x"}), "'x'"),
        (lambda p: [p.steer("a"), p.ablate("a")], r"cannot ablate \['a'\].*unsteer"),
        (lambda p: [p.steer("a", avoid={"b": 1}), p.ablate("b")], r"cannot ablate \['b'\].*unsteer"),
        (lambda p: p.steered("a", ablate="a").__enter__(), "ablated"),
        (lambda p: p.steered(ablate="a", avoid={"b": 4}).__enter__(), "avoid=.*need a module"),
        (lambda p: p.steered(temperature=0.5).__enter__(), "temperature=0.5 need a module"),
        (lambda p: make_policy(activation="swish"), "'swish'.*relu"),
        (lambda p: make_policy(()), "at least one"),
        (lambda p: make_policy(value_hidden=(0,)), "value_hidden"),
        (lambda p: make_policy(encoder=(0,)), "encoder"),
        (lambda p: make_policy(share_features_extractor=False, detach_encoder=True), "share_features_extractor"),
    ],
)
def test_bad_input_is_quoted(call, message):
    with pytest.raises(ValueError, match=message):
        call(make_policy())


def test_module_alone_matches_steering_and_leaves_others_untouched(obs):
    policy = make_policy()
    rows, actions = torch.stack([obs, obs + 1, 2 * obs]), torch.arange(30).view(3, 10) % 4
    log_probs = policy.log_prob_of_modules(rows, actions)
    for i, name in enumerate("abc"):
        with policy.steered(name):
            torch.testing.assert_close(log_probs[i], policy.get_distribution(rows[i]).log_prob(actions[i]))
    log_probs[[0, 2]].sum().backward()
    assert not any(p.grad.any() for p in policy.module_parameters("b"))
    policy.zero_grad()
    policy.mlp_extractor.forward_alone(policy.extract_features(obs), 0).sum().backward()
    assert all(p.grad is None for name in "bc" for p in policy.module_parameters(name))


def test_contrast_is_the_documented_rule(obs):
    """The steered distribution follows the formula, computed from each module and the gate alone."""
    policy = make_policy()
    alone = {}
    for name in "abc":
        with policy.steered(name):
            alone[name] = policy.get_distribution(obs).distribution.logits
    gate = policy.gate_logits(obs).softmax(-1)
    expected = (alone["b"] - 4 * gate[:, :1] * alone["a"].exp() - 0.5 * gate[:, 2:] * alone["c"].exp()) / 0.7
    policy.steer("b", avoid={"a": 4.0, "c": 0.5}, temperature=0.7)
    assert policy.steering["avoid"] == {"a": 4.0, "c": 0.5} and policy.steering["temperature"] == 0.7
    distribution = policy.get_distribution(obs)
    torch.testing.assert_close(distribution.distribution.probs, expected.softmax(-1))
    greedy, _ = policy.predict(obs.numpy(), deterministic=True)
    assert (greedy == expected.argmax(-1).numpy()).all()
    with pytest.raises(ValueError, match="unsteer"):
        policy.evaluate_actions(obs, torch.zeros(10, dtype=torch.int64))
    kept = policy.steering
    with policy.steered("a"):
        assert "avoid" not in policy.steering and "temperature" not in policy.steering
    assert policy.steering == kept


def test_steering_and_ablation_are_combined(obs):
    """In one call, in two calls of either order, and with the former steering left out."""
    policy = make_policy()
    gate = policy.gate_logits(obs)[:, :2].softmax(-1)
    combined = {"ablated": ["c"], "mix": {"a": 0.0, "b": 1.0, "c": 0.0}, "avoid": {"a": 4.0}, "temperature": 0.5}
    options = {"avoid": {"a": 4.0}, "temperature": 0.5}
    policy.steer("b", **options)
    policy.ablate("c")
    assert policy.steering == combined
    alone = [policy.action_net(expert(obs)).log_softmax(-1) for expert in policy.mlp_extractor.experts]
    expected = ((alone[1] - 4 * gate[:, :1] * alone[0].exp()) / 0.5).softmax(-1)
    torch.testing.assert_close(policy.get_distribution(obs).distribution.probs, expected)
    policy.unsteer()
    policy.ablate("c")
    policy.steer("b", **options)
    assert policy.steering == combined
    policy.unsteer()
    policy.ablate("a")
    with policy.steered("b", ablate="c", **options):
        assert policy.steering == combined
    assert policy.steering == {"ablated": ["a"]}
    for unknown in (policy.steered, policy.steer):
        with pytest.raises(TypeError, match="strength"):
            unknown("b", strength=4)


def test_no_contrast_and_temperature_one_change_nothing(obs):
    policy = make_policy()
    with policy.steered("b"):
        plain = policy.get_distribution(obs).distribution.logits
    with policy.steered("b", avoid={"a": 0.0}, temperature=1.0):
        torch.testing.assert_close(policy.get_distribution(obs).distribution.logits, plain)
    gaussian = RoutedActorCriticPolicy(
        gym.spaces.Box(0, 1, (6,)), gym.spaces.Box(-1, 1, (2,)), lambda _: 1e-3, modules=("a", "b")
    )
    with pytest.raises(ValueError, match="discrete"):
        gaussian.steer("a", avoid={"b": 1.0})


def test_avoiding_goes_on_after_another_is_ablated(obs):
    policy = make_policy()
    policy.ablate("c")
    gate = policy.gate_logits(obs)[:, :2].softmax(-1)
    torch.testing.assert_close(policy.mlp_extractor.gate_weights(obs)[:, :2], gate)
    policy.steer("b", avoid={"a": 1.0})
    with torch.no_grad():
        assert policy.mlp_extractor.gate_weights(obs)[:, 2].eq(0).all()


def test_a_detached_encoder_learns_from_values_alone(obs):
    for detach in (True, False):
        policy = make_policy(encoder=(5,), detach_encoder=detach)
        values, log_probs, _, _ = policy.evaluate_routed(obs, torch.zeros(10, dtype=torch.long), torch.ones(10, 4))
        encoder = list(policy.features_extractor.parameters())
        from_policy = torch.autograd.grad(log_probs.sum(), encoder, allow_unused=True, retain_graph=True)
        assert all((grad is None) == detach for grad in from_policy)
        assert all(grad is not None for grad in torch.autograd.grad(values.sum(), encoder))


def paper_policy(modules=("ghost", "diamond"), **options):
    torch.manual_seed(0)
    space = gym.spaces.Box(0, 1, (100,), np.float32)
    return PaperPolicy(space, gym.spaces.Discrete(4), lambda _: 5e-5, modules=modules, **options)


def test_the_papers_networks_have_the_published_shapes():
    """Cloud et al. 2024, section F: biases start at zero, all other weights have torch's default initialization."""
    policy = paper_policy()
    shapes = {name: tuple(p.shape) for name, p in policy.named_parameters() if name.endswith("weight")}
    module = [(256, 100), (256, 256)]
    assert list(shapes.values()) == [
        *module,
        *module,
        (4, 4, 1),
        *module,
        (1, 256),
        (16, 4, 1),
        (256, 400),
        (32, 256),
        (4, 256),
        (1, 32),
    ]
    assert not any(p.any() for name, p in policy.named_parameters() if name.endswith("bias"))
    first = policy.module_parameters("ghost")[0]
    assert 0.09 < first.abs().max() <= 0.1  # uniform within 1 / sqrt(100)
    assert policy.optimizer.defaults["eps"] == 1e-8


def test_the_papers_gate_is_the_sigmoid_of_one_logit_and_its_value_network_affine():
    policy = paper_policy()
    obs = torch.rand(8, 100)
    logit = policy.mlp_extractor.gate(obs)[:, 1]
    latents = [policy.mlp_extractor.experts[i](obs) for i in range(2)]
    weight = torch.sigmoid(logit)[:, None]
    torch.testing.assert_close(policy.mlp_extractor.forward_actor(obs), weight * latents[1] + (1 - weight) * latents[0])
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(policy.mlp_extractor.gate(obs), torch.ones(8, dtype=torch.int64)),
        torch.nn.functional.binary_cross_entropy_with_logits(logit, torch.ones(8)),
    )
    values = policy.predict_values(torch.stack([obs[0], obs[1], (obs[0] + obs[1]) / 2])).flatten()
    torch.testing.assert_close(values[2], (values[0] + values[1]) / 2)


def test_a_pointwise_convolution_is_torchs():
    fast = PointwiseConv(4, 16, 1)
    planes = torch.rand(3, 4, 25)
    torch.testing.assert_close(fast(planes), torch.nn.Conv1d.forward(fast, planes))


def test_single_module_and_many_module_paper_networks():
    assert paper_policy(("policy",)).mlp_extractor.gate is None
    assert paper_policy(MODULES).mlp_extractor.gate(torch.rand(5, 100)).shape == (5, 3)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.modular])
def test_an_agent_with_a_single_network_names_the_methods_with_modules(method):
    modular = ", ".join(name for name, each in METHODS.items() if each.modular)
    model = small_model(method=method)
    for agent in (model, model.policy):
        for call in (
            lambda agent=agent: agent.steer("diamond"),
            lambda agent=agent: agent.steer({"diamond": 1}),
            lambda agent=agent: agent.steer("policy", avoid={"diamond": 4}),
            lambda agent=agent: agent.ablate("diamond"),
            lambda agent=agent: agent.steered("diamond").__enter__(),
        ):
            refused(call, f"'diamond': this method has a single network; those with modules are {modular}")
    assert not model.policy.steering


def test_the_nearest_module_is_named():
    refused(lambda: small_model().steer("Diamnd"), "unknown module 'Diamnd'", "did you mean 'diamond'?")
