"""The training loop on one process: compared with a loop written out, and with known facts about its parts."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from routed_rl.lm import training as module
from routed_rl.lm.batches import Batch
from routed_rl.lm.losses import next_token_loss, token_losses
from routed_rl.lm.training import Training, make_optimizer, train
from routed_rl.runs import read_metrics
from tests.lm.cases import (
    LENGTH,
    ROWS,
    VOCABULARY,
    Stopped,
    log_often,
    make_batches,
    make_corpus,
    make_llama,
    open_run,
)

SHORT = Training(steps=6, learning_rate=1e-2, warmup=3)


@pytest.fixture(scope="module")
def batches(tmp_path_factory):
    return make_batches(make_corpus(tmp_path_factory.mktemp("corpora") / "corpus"))


@pytest.fixture(autouse=True)
def often(monkeypatch):
    log_often(monkeypatch)


def assert_same(model, other, tolerance=1e-12):
    for (name, parameter), expected in zip(model.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=tolerance, msg=lambda text, name=name: name + text)


def test_it_does_what_a_loop_written_out_does(batches):
    model, plain = make_llama(), make_llama()
    train(model, batches, SHORT)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1)
    # Warm-up in thirds, then three steps of half a cosine, from 1 down to 0.1.
    for step, share in enumerate([1 / 3, 2 / 3, 1, 1, 0.1 + 0.9 * 0.75, 0.1 + 0.9 * 0.25]):
        batch = batches.batch(step)
        logits = plain(**batch.inputs).logits[:, :-1]
        F.cross_entropy(logits[batch.scored], batch.targets[batch.scored]).backward()
        nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.param_groups[0]["lr"] = 1e-2 * share
        optimizer.step()
        optimizer.zero_grad()
    # Losses are taken in single precision.
    assert_same(model, plain, 1e-5)


@pytest.mark.parametrize("accumulate", [2, 4, 8])
def test_parts_of_a_batch_make_no_difference(batches, accumulate):
    scored = [part.sum() for step in range(SHORT.steps) for part in batches.batch(step).scored.chunk(accumulate)]
    assert len(set(map(int, scored))) > 1
    whole, parts = make_llama(), make_llama()
    train(whole, batches, SHORT)
    train(parts, batches, Training(**{**vars(SHORT), "accumulate": accumulate}))
    assert_same(parts, whole, 1e-8)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_part_knows_the_batch_it_is_of(batches, accumulate):
    """An objective can scale its loss by its share of the whole batch: here for a mean over rows."""
    seen = []

    def objective(model, part):
        seen.append((len(part), len(part.whole)))
        return token_losses(model, part).mean(dim=1).sum() / len(part.whole) * int(part.whole.scored.sum())

    whole, parts = make_llama(), make_llama()
    train(whole, batches, SHORT, objective)
    train(parts, batches, Training(**{**vars(SHORT), "accumulate": accumulate}), objective)
    assert seen[0] == (ROWS, ROWS) and seen[-1] == (ROWS // accumulate, ROWS)
    assert_same(parts, whole, 1e-8)


def test_a_gradient_of_ones_own(batches):
    """A gradient function may compute the gradient several times, and change it."""
    model, plain = make_llama(), make_llama()

    def mean_of_two(model, compute):
        loss = compute()
        assert torch.equal(compute(), loss)
        for parameter in model.parameters():
            parameter.grad /= 2
        return loss

    train(model, batches, SHORT, gradient=mean_of_two)
    train(plain, batches, SHORT)
    assert_same(model, plain, 1e-8)


def test_what_is_not_scored_does_not_count(batches):
    class Padded:
        """Batches with twice as many rows. The second half of the rows is not scored."""

        def batch(self, step):
            batch = batches.batch(step)
            tokens, examples = torch.cat([batch.tokens, batch.tokens.flip(1)]), torch.cat([batch.examples] * 2)
            scored = torch.cat([batch.scored, torch.zeros_like(batch.scored)])
            return Batch(tokens, torch.cat([batch.labels] * 2), scored, examples, packed=True)

    model, padded = make_llama(), make_llama()
    train(model, batches, SHORT)
    train(padded, Padded(), Training(**{**vars(SHORT), "accumulate": 2}))
    assert_same(padded, model, 1e-8)


def test_a_batch_depends_on_seed_and_step_alone(batches):
    again = make_batches(batches.corpus)
    steps = [0, batches.steps_per_epoch + 1, 5, 0]
    for step in steps:
        for name in ("tokens", "labels", "scored"):
            assert torch.equal(
                getattr(again.batch(step), name), getattr(make_batches(batches.corpus).batch(step), name)
            )
    other = make_batches(batches.corpus, seed=1)
    assert not torch.equal(other.batch(0).tokens, again.batch(0).tokens)
    assert not torch.equal(again.batch(0).tokens, again.batch(batches.steps_per_epoch).tokens)


def test_the_loss_falls_from_uniform_and_is_logged(batches, tmp_path):
    seen = []
    with open_run(tmp_path / "run") as run:
        settings = Training(steps=43, learning_rate=2e-2, warmup=5)
        train(make_llama(torch.float32), batches, settings, run=run, on_step=seen.append)
        assert run.checkpoint_steps() == [40, 43]
    assert seen == list(range(43))
    rows, times = (read_metrics(tmp_path / "run" / f"{name}.csv") for name in ("metrics", "timings"))
    assert [row["step"] for row in rows] == [row["step"] for row in times] == [*range(5, 41, 5), 43]
    assert list(rows[0]) == ["step", "loss", "learning_rate", "gradient_norm"]
    assert list(times[0])[1:] == ["seconds", "tokens_per_second", "flops_per_second", "share_of_matmul_rate"]
    tokens = sum(int(batches.batch(step).real.sum()) for step in range(5))
    assert times[0]["tokens_per_second"] * times[0]["seconds"] == pytest.approx(tokens)
    assert rows[0]["loss"] == pytest.approx(math.log(VOCABULARY), abs=0.3)
    # Every second word is a function word that follows from the words before it, so about half of the nats are left.
    assert rows[-1]["loss"] < 0.65 * math.log(VOCABULARY)
    assert [row["learning_rate"] for row in rows[:2]] == [2e-2, settings.rate(9)]
    assert list((tmp_path / "run" / "tensorboard").iterdir())


def test_dropout_is_a_function_of_seed_and_step(batches):
    def dropped(seed, look):
        model = make_llama(attention_dropout=0.3)
        train(model, batches, SHORT, seed=seed, on_step=lambda step: torch.rand(step + look))
        return model.model.embed_tokens.weight

    assert torch.equal(dropped(0, 0), dropped(0, 3))
    assert not torch.equal(dropped(0, 0), dropped(1, 0))


def test_clipping_bounds_the_gradient(batches, monkeypatch):
    norms = {}
    for clip in (None, 0.5, 1e6):
        model = make_llama()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        monkeypatch.setattr(module, "make_optimizer", lambda *_, optimizer=optimizer: optimizer)
        before = [parameter.detach().clone() for parameter in model.parameters()]
        train(model, batches, Training(steps=1, learning_rate=1.0, warmup=0, clip=clip))
        moved = [parameter.detach() - old for parameter, old in zip(model.parameters(), before, strict=True)]
        norms[clip] = float(torch.linalg.vector_norm(torch.cat([change.flatten() for change in moved])))
    assert norms[None] == pytest.approx(norms[1e6], rel=1e-6) and norms[None] > 0.6
    assert norms[0.5] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_it_stops_at_what_is_no_number_and_keeps_the_last_checkpoint(batches, tmp_path, broken):
    calls = 0

    def objective(model, batch):
        nonlocal calls
        calls += 1
        loss = next_token_loss(model, batch)
        if calls < 15:
            return loss
        # The root's derivative at 0 is infinite.
        return loss * math.nan if broken == "loss" else loss + (0 * loss).sqrt()

    with open_run(tmp_path / "run") as run:
        with pytest.raises(FloatingPointError, match=r"by step 15 the loss is .*: lower the learning rate"):
            train(make_llama(), batches, Training(steps=30), objective, run=run)
        assert run.checkpoint_steps() == [10]
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 4 and "nan" in rows[-1]


def test_frozen_parameters_stay_and_are_resumed(batches, tmp_path):
    def frozen():
        model = make_llama()
        model.model.layers.requires_grad_(False)
        return model

    unbroken, stopped, resumed = frozen(), frozen(), frozen()
    settings = Training(steps=15, warmup=3)
    train(unbroken, batches, settings)
    with open_run(tmp_path / "run") as run, pytest.raises(KeyboardInterrupt):
        train(stopped, batches, settings, run=run, on_step=interrupt)
    with torch.no_grad():
        resumed.lm_head.weight.zero_()  # a checkpoint has all weights, also frozen ones
        resumed.model.layers[0].mlp.up_proj.weight.zero_()
    with open_run(tmp_path / "run") as run:
        train(resumed, batches, settings, run=run)
    assert_same(resumed, unbroken, 0)
    assert_same(resumed.model.layers, make_llama().model.layers, 0)
    assert not torch.equal(resumed.lm_head.weight, make_llama().lm_head.weight)


def interrupt(step):
    if step == 12:
        raise KeyboardInterrupt


def test_bfloat16_products_and_float32_weights(batches):
    full, half = make_llama(torch.float32), make_llama(torch.float32)
    train(full, batches, SHORT)
    train(half, batches, Training(**{**vars(SHORT), "precision": "bf16"}))
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float32}
    with torch.no_grad():
        losses = [float(next_token_loss(model, batches.batch(50))) / ROWS / LENGTH for model in (full, half)]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


def test_rows_that_cannot_be_shared_are_refused(batches):
    with pytest.raises(ValueError, match="8 rows cannot be shared evenly by 1 processes, in 3 parts"):
        train(make_llama(), batches, Training(steps=1, accumulate=3))


def test_only_what_is_trained_is_given_to_the_optimizer():
    model = make_llama()
    model.model.embed_tokens.requires_grad_(False)
    (group,) = make_optimizer(model, Training(betas=(0.8, 0.9))).param_groups
    assert len(group["params"]) == len(list(model.parameters())) - 1
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.1)


def test_it_may_end_early_and_stays_ended(batches, tmp_path):
    """``stop`` is called before the first step, after each step, and for a loaded checkpoint. Where training ends there
    is a row of metrics and a checkpoint. The learning rate decays as if all steps were to be done.
    """
    asked, settings = [], Training(**{**vars(SHORT), "steps": 43})

    def stop(done):
        asked.append(done)
        return done == 7

    model, plain = make_llama(), make_llama()
    with open_run(tmp_path / "run") as run:
        assert train(model, batches, settings, run=run, stop=stop) == 7
        assert run.checkpoint_steps() == [7] and asked == list(range(8))
    with pytest.raises(Stopped):
        train(plain, batches, settings, on_step=stop_after(7))
    assert_same(model, plain, 0.0)
    for _ in range(2):
        asked.clear()
        again = make_llama()
        with open_run(tmp_path / "run") as run:
            assert train(again, batches, settings, run=run, stop=stop) == 7
        assert asked == [7]
        assert_same(again, model, 0.0)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    assert [row["step"] for row in rows] == [5, 7] and rows[-1]["learning_rate"] == settings.rate(6)
    # It is called after the last step too.
    asked.clear()
    assert train(make_llama(), batches, SHORT, stop=stop) == 6 and asked == list(range(7))


def stop_after(steps):
    def on_step(step):
        if step + 1 == steps:
            raise Stopped

    return on_step
