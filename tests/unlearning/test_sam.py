"""SAM: the gradient uphill is computed by hand, the weights do not change, and the loop counts a loss once."""

import pytest
import torch

from routed_rl.lm.losses import next_token_loss
from routed_rl.lm.training import Training, train
from routed_rl.runs import read_metrics
from routed_rl.unlearning import GradDiff, Sam
from tests.lm.cases import log_often, make_batches, make_corpus, make_llama, open_run

RHO = 0.3
SHORT = Training(steps=4, learning_rate=1e-2, warmup=2)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    return make_batches(make_corpus(tmp_path_factory.mktemp("corpora") / "corpus"))


def gradient_at(weights, offsets):
    """Return the gradient of ``sum_i (i + 1) * w_i^4`` by its formula, with the weights moved by offsets."""
    return [4 * (i + 1) * (w + offset) ** 3 for i, (w, offset) in enumerate(zip(weights, offsets, strict=True))]


def test_the_gradient_is_that_of_the_formula_and_the_model_stays():
    start = [0.5, -0.25, 1.0]
    model = torch.nn.ParameterList([torch.tensor(w, dtype=torch.float64) for w in (*start, 9.0)])
    model[3].requires_grad_(False)
    calls = []

    def compute():
        loss = sum((i + 1) * weight**4 for i, weight in enumerate(model) if weight.requires_grad)
        loss.backward()
        calls.append([weight.item() for weight in model])
        return loss.detach()

    loss = Sam(rho=RHO).gradient(model, compute)
    first = gradient_at(start, [0.0] * 3)
    norm = sum(g**2 for g in first) ** 0.5
    offsets = [RHO * g / (norm + 1e-12) for g in first]
    assert sum(offset**2 for offset in offsets) ** 0.5 == pytest.approx(RHO)
    assert calls[0] == [*start, 9.0]
    assert calls[1] == pytest.approx([*(w + offset for w, offset in zip(start, offsets, strict=True)), 9.0])
    assert [float(weight.grad) for weight in model[:3]] == pytest.approx(gradient_at(start, offsets))
    assert [weight.item() for weight in model] == [*start, 9.0] and model[3].grad is None
    assert float(loss) == sum((i + 1) * w**4 for i, w in enumerate(start))


def test_where_there_is_no_gradient_it_goes_nowhere():
    model = torch.nn.ParameterList([torch.zeros(3)])

    def compute():
        model[0].square().sum().backward()
        return torch.zeros(())

    Sam(rho=RHO).gradient(model, compute)
    assert torch.equal(model[0].grad, torch.zeros(3)) and torch.equal(model[0], torch.zeros(3))


def test_steps_are_those_of_a_loop_written_out(batches):
    model, plain = make_llama(), make_llama()
    train(model, batches, SHORT, gradient=Sam(rho=RHO).gradient)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(4):
        batch = batches.batch(step)
        count, weights = int(batch.scored.sum()), list(plain.parameters())
        first = torch.autograd.grad(next_token_loss(plain, batch) / count, weights)
        norm = torch.cat([gradient.flatten() for gradient in first]).norm()
        start = [weight.detach().clone() for weight in weights]
        for weight, gradient in zip(weights, first, strict=True):
            weight.data += RHO * gradient / (norm + 1e-12)
        second = torch.autograd.grad(next_token_loss(plain, batch) / count, weights)
        for weight, gradient, kept in zip(weights, second, start, strict=True):
            weight.data, weight.grad = kept, gradient
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.param_groups[0]["lr"] = SHORT.rate(step)
        optimizer.step()
    unlike = 0.0
    untouched = make_llama()
    train(untouched, batches, SHORT)
    for tensor, expected, other in zip(model.parameters(), plain.parameters(), untouched.parameters(), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-6)
        unlike = max(unlike, (tensor - other).abs().max().item())
    assert unlike > 1e-4


@pytest.mark.parametrize("accumulate", [2, 4])
def test_parts_of_a_batch_make_no_difference(batches, accumulate):
    whole, parts = make_llama(), make_llama()
    train(whole, batches, SHORT, gradient=Sam(rho=RHO).gradient)
    train(parts, batches, Training(**{**vars(SHORT), "accumulate": accumulate}), gradient=Sam(rho=RHO).gradient)
    for tensor, expected in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-7)


def test_both_gradients_are_of_the_same_function(batches):
    """Dropout is the same in both, so with rho 0 both gradients are the same."""
    models = [make_llama(attention_dropout=0.3) for _ in range(2)]
    train(models[0], batches, SHORT, seed=1)
    train(models[1], batches, SHORT, gradient=Sam(rho=0.0).gradient, seed=1)
    for tensor, expected in zip(models[1].parameters(), models[0].parameters(), strict=True):
        assert torch.equal(tensor, expected)


def test_a_loss_is_logged_once_and_where_the_model_is(batches, tmp_path, monkeypatch):
    log_often(monkeypatch)
    losses = {}
    for name, gradient in {"plain": {}, "sam": {"gradient": Sam(rho=RHO).gradient}}.items():
        with open_run(tmp_path / name) as run:
            train(make_llama(), batches, Training(steps=5, learning_rate=0.0), run=run, **gradient)
        losses[name] = read_metrics(tmp_path / name / "metrics.csv")[0]["loss"]
    assert losses["sam"] == losses["plain"]


def test_it_is_another_method_but_for_its_gradient(batches):
    other, model = GradDiff(retain_weight=2.0), make_llama()
    around = Sam(other)
    assert around.recipe == other.recipe
    losses = [method.objective(model, 0)(model, batches.batch(0)).item() for method in (around, other)]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match=r"rho of Sam must be 0 or more, got -0\.1"):
        Sam(rho=-0.1)
