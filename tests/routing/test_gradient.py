"""route_gradient: identity forward, weighted backward; also under vmap, autocast, compile and double backward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from routed_rl.routing import route_gradient

weights = st.floats(-3, 3, width=32)


def stop_gradient_formula(x, m):
    return m * x + (1 - m) * x.detach()


@given(st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), weights), min_size=1, max_size=8), st.integers(1, 3))
def test_value_is_identical_and_derivative_is_the_weight(pairs, width):
    x = torch.tensor([value for value, _ in pairs])[:, None].repeat(1, width).requires_grad_()
    weight = torch.tensor([w for _, w in pairs])
    coefficients = torch.linspace(-2, 2, x.numel()).reshape(x.shape)
    routed = route_gradient(x, weight)
    assert torch.equal(routed, x)
    (coefficients * routed).sum().backward()
    assert torch.equal(x.grad, coefficients * weight[:, None])


def test_weight_matches_leading_dimensions_of_any_rank():
    x = torch.randn(2, 3, 4, 5, requires_grad=True)
    for weight in (
        torch.tensor(-0.5),
        torch.randn(2),
        torch.randn(2, 3),
        torch.randn(1, 3),
        torch.randn(2, 3, 4, 5),
    ):
        (grad,) = torch.autograd.grad(route_gradient(x, weight).sum(), x)
        expected = weight.reshape(weight.shape + (1,) * (4 - weight.ndim)).expand_as(x)
        assert torch.equal(grad, expected)


def test_a_number_is_a_weight_and_weights_get_no_gradient():
    x, weight = torch.randn(3, requires_grad=True), torch.randn(3, requires_grad=True)
    route_gradient(x, 2).sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))
    route_gradient(x, weight).sum().backward()
    assert weight.grad is None


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 4, 1)])
def test_a_weight_that_does_not_fit_is_named(shape):
    with pytest.raises(ValueError, match=rf"{tuple(shape)}.*\(2, 3, 4\)".replace("(3,)", r"\(3,\)")):
        route_gradient(torch.zeros(2, 3, 4), torch.ones(shape))


def test_complex_weights_are_refused():
    with pytest.raises(ValueError, match="real"):
        route_gradient(torch.zeros(2), torch.ones(2, dtype=torch.complex64))


def test_double_backward_equals_the_stop_gradient_formula():
    x = torch.randn(5, dtype=torch.double, requires_grad=True)
    m = torch.tensor([0.0, 1.0, -0.5, 2.0, 0.3], dtype=torch.double)
    second = []
    for route in (route_gradient, stop_gradient_formula):
        (first,) = torch.autograd.grad((route(x, m) ** 3).sum(), x, create_graph=True)
        second.append(torch.autograd.grad(first.sum(), x)[0])
    torch.testing.assert_close(second[0], second[1])


def test_under_vmap_and_grad():
    x, m = torch.randn(4, 3), torch.tensor([0.0, 1.0, -2.0, 0.5])
    grads = torch.func.vmap(torch.func.grad(lambda x, m: (route_gradient(x, m) ** 2).sum()))(x, m)
    assert torch.equal(grads, 2 * x * m[:, None])


def test_under_autocast():
    layer, x = nn.Linear(4, 3), torch.randn(6, 4)
    m = torch.tensor([0.0, 1.0, 0.5, -1.0, 2.0, 0.0])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = layer(x)
        hidden.retain_grad()
        routed = route_gradient(hidden, m)
    assert routed.dtype == torch.bfloat16 and torch.equal(routed, hidden)
    routed.float().sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    assert torch.equal(hidden.grad.float(), m[:, None].expand(6, 3))


def test_under_compile():
    # The eager backend traces the whole graph and fails on a graph break, but needs no compiler.
    compiled = torch.compile(lambda x, m: (route_gradient(x, m) ** 2).sum(), backend="aot_eager", fullgraph=True)
    x, m = torch.randn(4, 3, requires_grad=True), torch.tensor([0.0, 1.0, -2.0, 0.5])
    compiled(x, m).backward()
    assert torch.equal(x.grad, 2 * x.detach() * m[:, None])


def test_what_an_activation_mask_masks():
    """An activation mask scales gradients of incoming weights, not of later ones (Cloud et al. 2024, section 3)."""
    torch.manual_seed(0)
    upstream, incoming, outgoing = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 1)
    x, m = torch.randn(5, 3), torch.tensor([0.0, -0.75])

    def gradients(mask):
        hidden = upstream(x)
        z = incoming(hidden).relu()
        loss = (outgoing(route_gradient(z, mask.expand(5, 2))) + hidden.sum(1, keepdim=True)).sum()
        parameters = [incoming.weight, incoming.bias, outgoing.weight, outgoing.bias, upstream.weight]
        return torch.autograd.grad(loss, parameters, allow_unused=True)

    plain, routed, skip_only = gradients(torch.ones(2)), gradients(m), gradients(torch.zeros(2))
    torch.testing.assert_close(routed[0], plain[0] * m[:, None])
    torch.testing.assert_close(routed[1], plain[1] * m)
    assert torch.equal(routed[2], plain[2]) and torch.equal(routed[3], plain[3])
    second_unit_only = torch.tensor([0.0, 1.0])
    through_second = gradients(second_unit_only)[4] - skip_only[4]
    torch.testing.assert_close(routed[4], skip_only[4] + m[1] * through_second)


def test_routed_derivative_equals_the_recursive_definition():
    """D L / D v = sum over children u of alpha_(v,u) * D L / D u * du/dv, per example, then summed."""
    torch.manual_seed(1)
    w1, w2 = torch.randn(2, requires_grad=True), torch.randn(2, requires_grad=True)
    x, alpha = torch.randn(6), torch.randn(6, 2)  # one weight per example on the edge out of each hidden node
    hidden = torch.tanh(x[:, None] * w1)
    loss = (route_gradient(hidden, alpha) * w2).sum(1).pow(2).sum()
    loss.backward()
    expected = torch.zeros(2)
    for i in range(6):
        node = torch.tanh(x[i] * w1.detach())
        d_output = 2 * (node * w2.detach()).sum()
        d_node = alpha[i] * d_output * w2.detach()
        expected += d_node * (1 - node**2) * x[i]
    torch.testing.assert_close(w1.grad, expected)


def test_weight_one_trains_exactly_as_without_routing():
    def trained(route):
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        head = nn.Linear(8, 1)
        optimizer = torch.optim.Adam([*model.parameters(), *head.parameters()], lr=1e-2)
        for _ in range(20):
            x = torch.randn(16, 4)
            loss = (head(route(model(x))) - x[:, :1]).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return torch.cat([p.flatten() for p in [*model.parameters(), *head.parameters()]])

    assert torch.equal(trained(lambda z: z), trained(lambda z: route_gradient(z, torch.ones(16))))


def test_a_number_weighs_in_the_precision_of_the_tensor():
    x = torch.ones(2, dtype=torch.float64, requires_grad=True)
    route_gradient(x, 0.1).sum().backward()
    assert x.grad.tolist() == [0.1, 0.1]


def test_zero_blocks_an_infinite_gradient():
    x = torch.tensor([0.0, 1.0], requires_grad=True)
    route_gradient(x, torch.tensor([0.0, 1.0])).sqrt().sum().backward()
    assert x.grad.tolist() == [0.0, 0.5]
