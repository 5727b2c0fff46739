"""The check of suppression methods: all built-in ones pass, and each kind of mistake is found."""

import pytest
import torch

from routed_rl.lm.losses import target_logits, target_losses
from routed_rl.lm.suppressors.suppressor import Reference, brief, forget_targets, mean
from routed_rl.unlearning import SUPPRESSORS, MaxEnt, Npo, Sam, Suppressor, check_suppressor


@pytest.mark.parametrize(
    "method", [*(kind() for kind in SUPPRESSORS.values()), MaxEnt(retain="kl"), Sam(Npo())], ids=repr
)
def test_built_in_methods_pass(method):
    """RepNoise draws noise for each part."""
    check_suppressor(method, parts=type(method).__name__ != "RepNoise")


class Fine(Suppressor):
    recipe = brief(steps=3, learning_rate=1e-3)

    def loss(self, model, seed):
        return lambda trained, batch: mean(target_losses(target_logits(trained, batch), batch), forget_targets, batch)


def of(loss, **more):
    """A method with this loss, which is called with the model, the batch and the logits."""

    def make(self, model, seed):
        return lambda trained, batch: loss(trained, batch, target_logits(trained, batch))

    return type("Mine", (Fine,), {"loss": make, **more})()


def changes(self, model, seed):
    model.get_input_embeddings().weight.data += 1
    return Fine.loss(self, model, seed)


def draws(self, model, seed):
    weight = torch.randn(())
    return lambda trained, batch: weight * Fine.loss(self, model, seed)(trained, batch)


def with_reference(self, model, seed):
    reference = Reference(model)
    return lambda trained, batch: Fine.loss(self, model, seed)(trained, batch) + 0 * reference.logits(batch).sum()


MISTAKES = [
    (Fine, "method must be a Suppressor, got the class Fine: make one, Fine()"),
    ("npo", "method must be a Suppressor, got 'npo'"),
    (type("Mine", (Fine,), {"__annotations__": {"weight": float}, "weight": 1.0})(), "weight is no setting of Mine"),
    (type("Mine", (Fine,), {"recipe": {"steps": 3}})(), "recipe of Mine must be a Training of 1 step or more"),
    (of(lambda model, batch, logits: logits), "the loss of Mine must be a tensor of one number, got a tensor of shape"),
    (of(lambda model, batch, logits: 3.0), "the loss of Mine must be a tensor of one number, got 3.0"),
    (of(lambda model, batch, logits: logits.sum() / 0), "the loss of Mine is"),
    (of(lambda model, batch, logits: logits.sum().detach()), "the loss of Mine has no gradient: do not detach it"),
    (of(lambda model, batch, logits: 0 * logits.sum()), "the loss of Mine has no gradient: no weight would change"),
    (
        of(lambda model, batch, logits: (0 * logits).sum().sqrt()),
        "the loss of Mine has a gradient that is not finite, in ",
    ),
    (of(lambda model, batch, logits: logits.mean()), "but the losses of its parts sum to"),
    (
        of(lambda model, batch, logits: logits[forget_targets(batch)].mean()),
        "the loss of Mine for a part of a batch is nan",
    ),
    (type("Mine", (Fine,), {"loss": changes})(), "Mine.loss changes the model's weights before training"),
    (type("Mine", (Fine,), {"loss": draws})(), "Mine does not give the same weights again with the same seed"),
    (
        type("Mine", (Fine,), {"gradient": lambda self, model, compute: torch.zeros(())})(),
        "Mine changes no weights in 2",
    ),
    (
        type("Mine", (Fine,), {"loss": with_reference})(),
        "the cost of Mine is 1, but its passes cost 1.33 gradient steps",
    ),
]


@pytest.mark.parametrize(("method", "message"), MISTAKES, ids=[message for _, message in MISTAKES])
def test_each_mistake_is_found(method, message):
    with pytest.raises(ValueError) as error:
        check_suppressor(method)
    assert message in str(error.value)


def test_a_method_without_mistakes_passes_and_leaves_the_generator_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_suppressor(Fine())
    assert torch.equal(torch.rand(2), expected)
