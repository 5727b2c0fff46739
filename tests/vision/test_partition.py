"""Partitioned codes: which part learns from which data, and losses with known values."""

import numpy as np
import pytest
import torch
from torch import nn

from routed_rl.routing import RouteTable
from routed_rl.vision import (
    HALVES,
    Penalties,
    absolute_errors,
    partition_loss,
    partitioned_autoencoder,
    partitioned_classifier,
    seeded,
    squared_errors,
    train_epoch,
)
from routed_rl.vision.partition import PartitionedNetwork, correlation, group_balanced, l1_norms

TWO_SIDED = RouteTable({"top": {"bottom": 0}, "bottom": {"top": 0}}, HALVES)
ONE_SIDED = RouteTable({"top": {}, "bottom": {"top": 0}}, HALVES)
NONE = Penalties((0.0, 0.0), 0.0)
PIXELS, CODE = 12, 8


def network(routes=TWO_SIDED, separate=False, seed=0):
    return seeded(lambda: partitioned_autoencoder(PIXELS, (16, 10), CODE, routes, separate=separate), seed)


def batch(labels, seed=0):
    images = torch.rand(len(labels), PIXELS, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return images, torch.tensor(labels)


def gradients(model, labels, groups=(0, 1), penalties=NONE):
    images, labels = batch(labels)
    model.zero_grad()
    loss = partition_loss(
        model(images, labels), lambda rebuilt: absolute_errors(images, rebuilt), labels, groups, penalties
    )
    loss.backward()
    return loss


def last_rows(model):
    """The gradient of the encoder's last layer, split into top and bottom half."""
    return model.encoder[-1].weight.grad.chunk(2)


@pytest.mark.parametrize(("routes", "group", "blocked"), [(TWO_SIDED, 0, 1), (TWO_SIDED, 1, 0), (ONE_SIDED, 1, 0)])
def test_a_routed_group_teaches_its_half_alone(routes, group, blocked):
    model = network(routes)
    gradients(model, [group] * 6)
    rows = last_rows(model)
    assert torch.count_nonzero(rows[blocked]) == 0 and torch.count_nonzero(rows[1 - blocked]) > 0
    assert torch.count_nonzero(model.decoders[0][0].weight.grad.chunk(2, dim=1)[blocked]) > 0, "downstream learns"


def test_one_sided_routing_leaves_the_other_group_free():
    model = network(ONE_SIDED)
    gradients(model, [0] * 6)
    assert all(torch.count_nonzero(rows) > 0 for rows in last_rows(model))


def test_penalties_reach_the_half_that_a_route_closes():
    model = network()
    gradients(model, [0] * 6, penalties=Penalties((0.0, 1e-2), 0.0))
    assert torch.count_nonzero(last_rows(model)[1]) > 0


def test_the_route_changes_no_value():
    routed, plain = network(), network(RouteTable({"top": {}, "bottom": {}}, HALVES))
    images, labels = batch([0, 1, 1, 0])
    for a, b in zip(vars(routed(images, labels)).values(), vars(plain(images, labels)).values(), strict=True):
        assert torch.equal(a, b)


def test_certificates_see_one_half_and_teach_nobody():
    model = network()
    images, labels = batch([0, 1, 0])
    outputs = model(images, labels)
    (outputs.top.sum() + outputs.bottom.sum()).backward()
    assert all(p.grad is None for part in (model.encoder, model.decoders) for p in part.parameters())
    assert all(p.grad is not None for p in model.certificates.parameters())
    top = outputs.code.detach()[:, : CODE // 2]
    assert torch.equal(outputs.top, model.certificates["top"](top))
    with_other_bottom = model.certificates["top"](torch.cat((top, torch.randn(3, CODE // 2)), dim=1)[:, : CODE // 2])
    assert torch.equal(outputs.top, with_other_bottom)


def test_separate_decoders_learn_from_their_group_and_decode_it():
    model = network(separate=True)
    images, labels = batch([0, 1, 1])
    outputs = model(images, labels)
    for index, label in enumerate(labels):
        assert torch.allclose(outputs.decoded[index], model.decoders[int(label)](outputs.code)[index], atol=1e-6)
    with pytest.raises(ValueError, match="with separate decoders, every sample needs a label"):
        model(images, torch.tensor([0, 1, -1]))
    gradients(model, [1, 1, 1])
    assert all(p.grad is None for p in model.decoders[0].parameters())
    assert any(torch.count_nonzero(p.grad) > 0 for p in model.decoders[1].parameters())


def test_a_shared_decoder_learns_from_both_groups():
    model = network()
    alone = []
    for group in (0, 1):
        gradients(model, [group] * 4)
        alone.append(model.decoders[0][-1].bias.grad.clone())
    assert all(torch.count_nonzero(gradient) > 0 for gradient in alone)


def test_a_group_left_out_teaches_certificates_alone():
    model = network(RouteTable({"top": {}, "bottom": {}}, HALVES))
    gradients(model, [0, 0, 0], groups=(1,), penalties=Penalties(l1=(0.0, 0.0)))
    for part in (model.encoder, model.decoders):
        assert all(p.grad is None or torch.count_nonzero(p.grad) == 0 for p in part.parameters())
    assert any(torch.count_nonzero(p.grad) > 0 for p in model.certificates.parameters())


@pytest.mark.parametrize("labels", [[0, 1, 0, 1, 1, 0], [-1, 0, 1, -1, 0, 1]])
def test_no_error_of_a_group_reaches_the_half_of_the_other_through_batch_norm(labels):
    model = seeded(lambda: partitioned_classifier(PIXELS, (10,), CODE, 4, TWO_SIDED), 0)
    images, labels = batch(labels)
    code = model.encoder(images)
    for group, closed in ((0, 1), (1, 0)):
        outputs = model(images, labels)
        outputs.code.retain_grad()
        outputs.decoded[labels == group].square().sum().backward()
        assert torch.count_nonzero(outputs.code.grad.chunk(2, dim=1)[closed]) == 0
        assert torch.count_nonzero(outputs.code.grad.chunk(2, dim=1)[group]) > 0
        by_itself = model.decoders[0](code.detach()[labels == group])
        assert torch.allclose(outputs.decoded[labels == group], by_itself, atol=1e-6)


def test_the_l1_penalty_is_on_all_samples_and_correlation_on_those_that_teach():
    model = network(RouteTable({"top": {}, "bottom": {}}, HALVES))
    images, labels = batch([0, 0, 1, 1, 1])
    outputs = model(images, labels)
    error = lambda rebuilt: absolute_errors(images, rebuilt)  # noqa: E731
    plain = partition_loss(outputs, error, labels, (1,), NONE)
    code = outputs.code.detach().numpy()
    l1 = partition_loss(outputs, error, labels, (1,), Penalties((0.2, 0.0), 0.0)) - plain
    assert float(l1.detach()) == pytest.approx(0.2 * np.abs(code[:, : CODE // 2]).sum(axis=1).mean(), rel=1e-4)
    both = partition_loss(outputs, error, labels, (1,), Penalties((0.0, 0.0), 0.5)) - plain
    expected = np.abs(np.corrcoef(code[2:].T)[: CODE // 2, CODE // 2 :]).mean()
    assert float(both.detach()) == pytest.approx(0.5 * expected, rel=1e-4)


def test_the_loss_is_the_sum_of_its_parts():
    model = network()
    images, labels = batch([0, 0, 1, 1, 1])
    outputs = model(images, labels)
    found = partition_loss(
        outputs, lambda rebuilt: absolute_errors(images, rebuilt), labels, (0, 1), Penalties((0.1, 0.3), 0.7)
    )
    x, decoded, code = images.numpy(), outputs.decoded.detach().numpy(), outputs.code.detach().numpy()
    errors = np.abs(x - decoded).mean(axis=1)
    half = CODE // 2
    expected = errors[:2].mean() + errors[2:].mean()
    expected += 0.1 * np.abs(code[:, :half]).sum(axis=1).mean() + 0.3 * np.abs(code[:, half:]).sum(axis=1).mean()
    expected += 0.7 * np.abs(np.corrcoef(code.T)[:half, half:]).mean()
    expected += sum(np.abs(x - getattr(outputs, part).detach().numpy()).mean() for part in HALVES)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-5)


def test_correlation_is_numpys():
    code = torch.randn(50, 6, generator=torch.Generator().manual_seed(3))
    code[:, 4] = 2 * code[:, 1] + 0.1 * code[:, 4]
    expected = np.abs(np.corrcoef(code.numpy().T)[:3, 3:]).mean()
    assert float(correlation(code, torch.ones(50))) == pytest.approx(expected, rel=1e-5)
    weights = torch.zeros(50)
    weights[:20] = 1
    expected = np.abs(np.corrcoef(code[:20].numpy().T)[:3, 3:]).mean()
    assert float(correlation(code, weights)) == pytest.approx(expected, rel=1e-5)


def test_positions_of_a_code_count_as_samples():
    code = torch.randn(5, 4, 3, 2, generator=torch.Generator().manual_seed(3))
    flat = code.movedim(1, -1).reshape(-1, 4)
    ones = torch.ones(5)
    assert torch.allclose(correlation(code, ones), correlation(flat, torch.ones(30)))
    assert torch.allclose(l1_norms(code), flat.abs().reshape(30, 2, 2).sum(dim=2).mean(dim=0))


@pytest.mark.parametrize("code", [torch.zeros(4, 6), torch.ones(4, 6), torch.randn(1, 6)])
def test_a_constant_code_is_uncorrelated_and_its_gradient_finite(code):
    code.requires_grad_()
    value = correlation(code, torch.ones(len(code)))
    value.backward()
    assert float(value.detach()) == 0 and torch.isfinite(code.grad).all()


def test_groups_weigh_the_same_and_an_empty_one_nothing():
    errors = torch.tensor([1.0, 3.0, 10.0])
    first, last, nobody = torch.tensor([1.0, 1, 0]), torch.tensor([0.0, 0, 1]), torch.zeros(3)
    assert float(group_balanced(errors, [first, last])) == 12
    assert float(group_balanced(errors, [first, nobody])) == 2


def test_errors_per_image():
    images, rebuilt = torch.zeros(2, 4), torch.tensor([[0.0, 0, 0, 2], [1, -1, 1, -1]])
    assert absolute_errors(images, rebuilt).tolist() == [0.5, 1.0]
    assert squared_errors(images, rebuilt).tolist() == [1.0, 1.0]


def test_impossible_networks_are_refused():
    with pytest.raises(ValueError, match="must be even, got 7"):
        partitioned_autoencoder(4, (4,), 7, TWO_SIDED)
    with pytest.raises(ValueError, match=r"\['left', 'right'\]"):
        PartitionedNetwork(nn.Identity(), nn.Identity(), (nn.Identity(),) * 2, RouteTable({}, ("left", "right")))
    with pytest.raises(ValueError, match="one decoder, or one for each of 2 groups, got 3"):
        PartitionedNetwork(nn.Identity(), [nn.Identity()] * 3, (nn.Identity(),) * 2, TWO_SIDED)
    with pytest.raises(ValueError, match="-1 … 1"):
        network()(*batch([0, 2]))


def trained(seed):
    """The weights after two epochs."""
    model = network(seed=seed)
    images, labels = batch([0, 1] * 20)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)

    def loss(index, generator):
        x, groups = images[index], labels[index]
        return partition_loss(model(x, groups), lambda r: absolute_errors(x, r), groups, (0, 1), Penalties())

    losses = [train_epoch(optimizer, loss, len(images), 16, seed, epoch) for epoch in range(2)]
    assert losses[1] < losses[0]
    return torch.nn.utils.parameters_to_vector(model.parameters())


def test_training_is_a_function_of_the_seed():
    first = trained(0)
    torch.randn(3)
    assert torch.equal(first, trained(0)) and not torch.equal(first, trained(1))


def test_training_that_diverges_says_when():
    weight = nn.Parameter(torch.ones(()))
    with pytest.raises(FloatingPointError, match="epoch 4"):
        train_epoch(torch.optim.SGD([weight]), lambda index, _: weight * torch.inf, 8, 4, 0, 4)
