"""The suppressors' losses, compared with loops written from their formulas, for all kinds of rows, labels and masks."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.lm.batches import Batch
from routed_rl.lm.suppressors.maxent import divergence, divergence_from_uniform
from routed_rl.lm.suppressors.npo import npo
from routed_rl.unlearning import Ceu, GradAscent, GradDiff, MaxEnt, Npo, Pdu, SatImp, SimNpo, Undial, Wga
from tests.lm.test_losses import VOCABULARY, Bigram

A = 0.7


def bigram(seed):
    model = Bigram().eval()
    model.table.weight.data = 2 * torch.randn(model.table.weight.shape, generator=torch.Generator().manual_seed(seed))
    return model.double()


BEFORE, NOW = bigram(1), bigram(2)


@st.composite
def batches(draw):
    """Return rows in which each target is a forget target, a retain target or not scored. A kind may be missing."""
    rows, length = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    tokens = torch.randint(0, VOCABULARY, (rows, length), generator=generator)
    share, counted = draw(st.sampled_from([0.0, 0.5, 1.0])), draw(st.sampled_from([0.0, 0.3, 0.8, 1.0]))
    labels = -(torch.rand(rows, length, generator=generator) >= share).long()
    return Batch(tokens, labels, torch.rand(rows, length - 1, generator=generator) < counted)


def log_p(model, token):
    """Return the log-probability of each next token, as a list."""
    logits = [float(logit) for logit in model.table.weight[token]]
    total = math.log(sum(math.exp(logit) for logit in logits))
    return [logit - total for logit in logits]


def targets(batch, forget):
    """Return for each row its scored targets of a kind: the token before each target, and the target."""
    return [
        [
            (int(batch.tokens[row, t]), int(batch.tokens[row, t + 1]))
            for t in range(batch.tokens.shape[1] - 1)
            if batch.scored[row, t] and (batch.labels[row, t + 1] == 0) == forget
        ]
        for row in range(len(batch))
    ]


def average(values):
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def over_targets(batch, forget, value):
    return average(value(*pair) for row in targets(batch, forget) for pair in row)


def over_rows(batch, value):
    return average(value(row) for row in targets(batch, True) if row)


def nll(model, before, target):
    return -log_p(model, before)[target]


def ce(batch, forget):
    return over_targets(batch, forget, lambda *pair: nll(NOW, *pair))


def log_sigmoid(x):
    return -math.log(1 + math.exp(-x))


def from_uniform(before, target):
    return sum((1 / VOCABULARY) * (math.log(1 / VOCABULARY) - log) for log in log_p(NOW, before))


def from_before(before, target):
    pairs = zip(log_p(BEFORE, before), log_p(NOW, before), strict=True)
    return sum(math.exp(old) * (old - new) for old, new in pairs)


def npo_row(beta):
    def value(row):
        ratio = sum(nll(NOW, *pair) - nll(BEFORE, *pair) for pair in row)
        return -2 / beta * log_sigmoid(beta * ratio)

    return value


def simnpo_row(beta, margin):
    return lambda row: -2 / beta * log_sigmoid(beta * (sum(nll(NOW, *pair) for pair in row) / len(row) - margin))


def against_lowered(strength):
    def value(before, target):
        lowered = [float(x) - strength * (i == target) for i, x in enumerate(BEFORE.table.weight[before])]
        total = sum(math.exp(x) for x in lowered)
        return -sum(math.exp(x) / total * log for x, log in zip(lowered, log_p(NOW, before), strict=True))

    return value


def weighted_ascent(saturation, importance):
    def value(before, target):
        p = math.exp(-nll(NOW, before, target))
        return -(p**saturation) * (1 - p) ** importance * nll(NOW, before, target)

    return value


def without_the_target(before, target):
    """The cross-entropy against the model's own distribution, with the target left out and the rest renormalised."""
    p = [math.exp(log) for log in log_p(NOW, before)]
    rest = sum(p) - p[target]
    return -sum(of / rest * math.log(of) for i, of in enumerate(p) if i != target)


FORMULAS = [
    (GradDiff(A), lambda batch: -ce(batch, True) + A * ce(batch, False)),
    (MaxEnt(A), lambda batch: over_targets(batch, True, from_uniform) + A * ce(batch, False)),
    (
        MaxEnt(A, "kl"),
        lambda batch: over_targets(batch, True, from_uniform) + A * over_targets(batch, False, from_before),
    ),
    (Npo(A, beta=0.3), lambda batch: over_rows(batch, npo_row(0.3)) + A * ce(batch, False)),
    (SimNpo(A, 2.0, 0.4), lambda batch: over_rows(batch, simnpo_row(2.0, 0.4)) + A * ce(batch, False)),
    (Undial(A, 3.0), lambda batch: over_targets(batch, True, against_lowered(3.0)) + A * ce(batch, False)),
    (GradAscent(), lambda batch: -ce(batch, True)),
    (GradAscent(A), lambda batch: -ce(batch, True) + A * ce(batch, False)),
    (Wga(A, 2.0), lambda batch: over_targets(batch, True, weighted_ascent(2.0, 0.0)) + A * ce(batch, False)),
    (SatImp(A, 3.0, 0.5), lambda batch: over_targets(batch, True, weighted_ascent(3.0, 0.5)) + A * ce(batch, False)),
    (Ceu(A), lambda batch: over_targets(batch, True, without_the_target) + A * ce(batch, False)),
]


@pytest.mark.parametrize(("method", "formula"), FORMULAS, ids=[repr(method) for method, _ in FORMULAS])
def test_losses_are_those_of_loops(method, formula):
    loss = method.loss(BEFORE, seed=0)

    @settings(max_examples=25, deadline=None)
    @given(batches())
    def same(batch):
        with torch.no_grad():
            assert float(loss(NOW, batch)) == pytest.approx(formula(batch), rel=1e-9, abs=1e-9)

    same()


@pytest.mark.parametrize("method", [method for method, _ in FORMULAS], ids=repr)
@settings(max_examples=15, deadline=None)
@given(batches(), st.data())
def test_parts_add_up_to_the_whole_wherever_it_is_cut(method, batch, data):
    """The objective is the loss times the number that the training loop divides by."""
    objective, loss = method.objective(BEFORE, 0), method.loss(BEFORE, 0)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch)), max_size=3)))
    with torch.no_grad():
        parts = [
            float(objective(NOW, batch.rows(slice(*cut)).to("cpu")))
            for cut in zip([0, *cuts], [*cuts, len(batch)], strict=True)
        ]
        assert sum(parts) == pytest.approx(float(objective(NOW, batch)), rel=1e-9, abs=1e-9)
        assert sum(parts) == pytest.approx(float(loss(NOW, batch)) * int(batch.scored.sum()), rel=1e-9, abs=1e-9)


def test_a_uniform_distribution_has_no_divergence_from_it():
    logits = torch.full((2, 3, 7), -4.2, dtype=torch.float64, requires_grad=True)
    found = divergence_from_uniform(logits)
    torch.testing.assert_close(found, torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    divergence_from_uniform(logits).sum().backward()
    torch.testing.assert_close(logits.grad, logits.detach().softmax(-1) - 1 / 7)
    assert (divergence(logits, logits).abs() < 1e-12).all(), "nor has a distribution from itself"


def test_npo_falls_as_what_is_forgotten_becomes_less_likely():
    """Published re-implementations had the sign wrong."""
    losses = torch.linspace(0, 40, 50, dtype=torch.float64)
    found = npo(losses, torch.tensor(20.0), beta=0.1)
    assert (found.diff() < 0).all() and (found > 0).all()
    assert (found.diff().diff() > 0).all(), "the slower the further it is"
    assert found[0] / 2 - npo(torch.tensor(20.0), torch.tensor(20.0), 0.1) / 2 < 20

    # With such a small b it is gradient ascent.
    rows = torch.tensor([3.0, 30.0], dtype=torch.float64, requires_grad=True)
    npo(rows, torch.tensor([9.0, 1.0]), beta=1e-6).sum().backward()
    torch.testing.assert_close(rows.grad, torch.tensor([-1.0, -1.0], dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize(("method", "exponents"), [(Wga(beta=2.0), (2, 0)), (SatImp(), (5, 1))], ids=repr)
def test_the_weights_of_ascent_have_no_gradient(method, exponents):
    """The gradient by a target's logit is that of its loss, times the weight: p^b (1 - p)^c (1 - p)."""
    model = bigram(4)
    batch = Batch(torch.tensor([[2, 5]]), torch.tensor([[0, 0]]), torch.ones(1, 1, dtype=torch.bool))
    method.loss(BEFORE, 0)(model, batch).backward()
    with torch.no_grad():
        p = math.exp(log_p(model, 2)[5])
    expected = p ** exponents[0] * (1 - p) ** exponents[1] * (1 - p)
    assert float(model.table.weight.grad[2, 5]) == pytest.approx(expected, rel=1e-9)


def test_weights_are_right_for_tokens_that_are_certain_or_impossible():
    """1 - p keeps its digits where p is nearly 1, and no power of 0 gives NaN."""
    for gap, method in itertools.product(
        (30.0, 800.0, -800.0), (Wga(), Wga(beta=0.0), SatImp(), SatImp(1.0, 1.0, 0.0))
    ):
        model = bigram(4)
        model.table.weight.data[2] = 0.0
        model.table.weight.data[2, 5] = gap
        batch = Batch(torch.tensor([[2, 5]]), torch.tensor([[0, 0]]), torch.ones(1, 1, dtype=torch.bool))
        loss = method.loss(BEFORE, 0)(model, batch)
        loss.backward()
        assert loss.isfinite() and model.table.weight.grad.isfinite().all()
        if gap == 30.0 and method == SatImp():
            assert float(loss) == pytest.approx(-((7 * math.exp(-30)) ** 2), rel=1e-6)


STEPPED = [
    GradDiff(),
    GradAscent(),
    MaxEnt(),
    MaxEnt(retain="kl"),
    Npo(),
    SimNpo(),
    Undial(),
    Wga(),
    SatImp(),
    Ceu(),
    Pdu(),
]


@pytest.mark.parametrize("method", STEPPED, ids=repr)
def test_a_step_makes_what_is_forgotten_less_likely_and_keeps_the_rest(method):
    """Tokens below 4 are forget targets, the others retain targets. Each has a follower that was learned."""
    tokens = torch.tensor([[0, 1, 2, 3, 0], [4, 5, 6, 7, 4]])
    batch = Batch(tokens, torch.tensor([[0] * 5, [-1] * 5]), torch.ones(2, 4, dtype=torch.bool))
    model = Bigram().double().eval()
    with torch.no_grad():
        model.table.weight.zero_()
        model.table.weight[tokens[:, :-1].flatten(), tokens[:, 1:].flatten()] = 2.0
    before = model.table.weight.detach().clone()
    objective = method.objective(model, 0)
    objective(model, batch).backward()
    follower = model.table.weight.grad[tokens[:, :-1], tokens[:, 1:]]
    assert (follower[0] > 1e-3).all(), "down it goes"
    assert (follower[1] <= 1e-12).all(), "and this goes up, or stays"
    assert torch.equal(model.table.weight, before)


def test_what_is_not_scored_cannot_spoil_the_loss():
    """A target of probability 0 does no harm where it is not scored."""
    for method, _ in FORMULAS:
        model = bigram(3)
        model.table.weight.data[0, 1] = -1e30
        tokens, labels = torch.tensor([[0, 1, 2], [0, 1, 2]]), torch.tensor([[0] * 3, [-1] * 3])
        batch = Batch(tokens, labels, torch.tensor([[False, True], [False, True]]))
        loss = method.loss(BEFORE, 0)(model, batch)
        loss.backward()
        assert loss.isfinite() and model.table.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradDiff(retain_weight=-1.0), "retain_weight of GradDiff must be 0 or more, got -1.0"),
        (lambda: MaxEnt(retain_weight=math.nan), "retain_weight of MaxEnt must be 0 or more, got nan"),
        (lambda: Undial(strength=math.inf), "strength of Undial must be 0 or more, got inf"),
        (lambda: Npo(beta=0.0), "beta of Npo must be more than 0, got 0: for the limit at 0 take GradDiff"),
        (lambda: Npo(beta=-0.1), "beta of Npo must be 0 or more, got -0.1"),
        (lambda: SimNpo(beta=0.0), "beta of SimNpo must be more than 0, got 0"),
    ],
)
def test_settings_that_mean_nothing(make, message):
    with pytest.raises(ValueError, match=message):
        make()
