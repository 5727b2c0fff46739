"""PDU: its loss and its dual variable are those of the formula, and a resumed training is the same to the byte."""

import copy
import itertools

import pytest
import torch

from routed_rl.lm import Training, train, training
from routed_rl.lm.batches import Batch
from routed_rl.runs import RunDirectory
from routed_rl.unlearning import Pdu
from tests.unlearning.test_losses import BEFORE, NOW, over_targets, targets
from tests.unlearning.test_suppressors import knowing, source  # noqa: F401

SETTINGS = Pdu(retain_weight=0.4, slack=0.1, dual_rate=2.0)


def some_batch(seed, rows=4):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([[0] * 5, [-1] * 5] * (rows // 2))
    return Batch(torch.randint(0, 8, (rows, 5), generator=generator), labels, torch.ones(rows, 4, dtype=torch.bool))


def margin(before, target):
    logits = [float(logit) for logit in NOW.table.weight[before]]
    return (max(logits) - sum(logits) / len(logits)) ** 2


def retain_loss(model, batch):
    table = model.table.weight.detach()
    losses = [-float(table[b].log_softmax(-1)[t]) for row in targets(batch, False) for b, t in row]
    return sum(losses) / len(losses)


@pytest.mark.parametrize("parts", [1, 2])
def test_losses_and_the_dual_variable_are_those_of_loops(parts):
    """A step uses the dual variable of the steps before it, in whole batches and in parts."""
    loss, dual = SETTINGS.loss(BEFORE, 0), 0.4
    for seed in range(4):
        batch = some_batch(seed)
        share = len(batch) // parts
        found = sum(loss(NOW, batch.rows(slice(i * share, (i + 1) * share))) for i in range(parts))
        above = retain_loss(NOW, batch) - 1.1 * retain_loss(BEFORE, batch)
        assert found.item() == pytest.approx(over_targets(batch, True, margin) + dual * above, rel=1e-9)
        assert float(loss.state["dual"]) == pytest.approx(dual, rel=1e-9)
        dual = max(0.0, dual + 2.0 * above)


def test_the_dual_variable_rises_above_the_limit_falls_below_it_and_is_never_negative():
    flat, batch = copy.deepcopy(BEFORE), some_batch(0)
    flat.table.weight.data *= 0.0
    assert retain_loss(BEFORE, batch) > retain_loss(flat, batch) + 1
    for trained, original, way in ((BEFORE, flat, 1), (flat, BEFORE, -1)):
        loss = Pdu(retain_weight=1.0, dual_rate=0.1).loss(original, 0)
        duals = []
        for _ in range(40):
            loss(trained, copy.copy(batch))  # another whole batch is another step
            duals.append(float(loss.state["dual"]))
        assert all(way * (after - before) >= 0 for before, after in itertools.pairwise(duals))
        assert min(duals) >= 0 and duals[1] != duals[0]
        assert duals[-1] == 0.0 or way > 0


def test_measuring_changes_nothing():
    loss = SETTINGS.loss(BEFORE, 0)
    with torch.no_grad():
        for seed in range(3):
            loss(NOW, some_batch(seed))
    assert float(loss.state["dual"]) == 0.4 and not loss.state["above"].any()


class Stop(Exception):
    pass


def test_a_resumed_training_is_the_same_to_the_byte(knowing, tmp_path, monkeypatch):  # noqa: F811
    """The dual variable is in the checkpoints: without it, the resumed training differs."""
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    monkeypatch.setattr(training, "CHECKPOINT_EVERY", 1)
    method = Pdu(slack=0.0, dual_rate=30.0)
    recipe = Training(10, 3e-3, warmup=0)

    def trained(run=None, stop_at=None, forgets=False):
        model = copy.deepcopy(knowing)
        objective = method.objective(model, 0)
        if forgets:
            objective.state = {}

        def on_step(step):
            if step == stop_at:
                raise Stop

        train(model, source(method), recipe, objective, run=run, on_step=on_step)
        return model.state_dict()

    whole, resumed = trained(), {}
    for forgets in (False, True):
        path = tmp_path / str(forgets)
        with RunDirectory.open(path, {}, 0) as run, pytest.raises(Stop):
            trained(run, stop_at=7, forgets=forgets)
        with RunDirectory.open(path, {}, 0) as run:
            resumed[forgets] = trained(run, forgets=forgets)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in resumed[False].items())
    assert not all(torch.equal(tensor, whole[name]) for name, tensor in resumed[True].items())
