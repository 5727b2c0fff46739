"""Routed adapters: which adapter learns from which data, what is frozen, and that a deleted adapter is gone."""

import warnings

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from routed_rl.lm.adapters import FORGET, KEEP, add_adapters, delete_forget
from routed_rl.lm.batches import Batch, Batches, WholeDocuments
from routed_rl.lm.corpora import build_corpus
from routed_rl.lm.era import TABLE, EraObjective, era_weights
from routed_rl.lm.finders import find_topic
from routed_rl.lm.losses import evaluate, next_token_loss
from routed_rl.lm.models import save_model
from routed_rl.lm.stories import FORGET as TOPIC
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from routed_rl.lm.structure import feed_forward
from routed_rl.lm.training import Training, train
from routed_rl.routing import GradientRouter
from routed_rl.runs import RunDirectory
from tests.lm.tiny_models import FAMILIES, some_tokens, tiny_model


def adapted(kind="llama", spread=0.3, **options):
    """Return a model whose adapters have learned something."""
    adapters = add_adapters(tiny_model(kind), 2, seed=0, **options)
    torch.manual_seed(1)
    for name, parameter in adapters.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=spread)
    return adapters


@torch.no_grad()
def logits(model):
    return model(input_ids=some_tokens(), use_cache=False).logits


def batch(labels):
    tokens = some_tokens()
    return Batch(tokens, labels.expand(tokens.shape), torch.ones(2, 11, dtype=torch.bool))


def gradients(adapters):
    found = {name: p.grad.clone() for name, p in adapters.model.named_parameters() if p.grad is not None}
    adapters.model.zero_grad()
    return found


def routed(adapters, mode, labels, token_weight=None, alpha=0.0):
    weights = era_weights(torch.zeros(96) if token_weight is None else token_weight, alpha)
    with GradientRouter(adapters.model, adapters.sites(mode), TABLE, mode) as router:
        loss = EraObjective(router, weights)(adapters.model, batch(labels))
        loss.backward()
    return loss.detach(), gradients(adapters)


@pytest.mark.parametrize("kind", FAMILIES)
def test_added_they_change_nothing_and_alone_are_trained(kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        adapters = add_adapters(tiny_model(kind), 2, seed=0)
    model = adapters.model
    assert torch.equal(logits(model), logits(tiny_model(kind)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "lora_" in name}
    targets = {name for layer in (0, 1) for name in feed_forward(tiny_model(kind), layer).linear}
    assert {name.split(".lora_")[0].removeprefix("base_model.model.") for name in trained} == targets
    assert len(trained) == len(targets) * 2 * 2
    assert {name.split(".")[-2] for name in trained} == {KEEP, FORGET}


def test_they_start_as_the_seed_says_and_draw_nobody_elses_numbers():
    torch.manual_seed(0)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (add_adapters(tiny_model("llama"), 2, seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), drawn)
    assert all(torch.equal(first[name], again[name]) for name in first)
    into = [name for name in first if "lora_A" in name]
    assert not any(torch.equal(first[name], other[name]) for name in into)
    assert not any(torch.equal(first[n], first[n.replace(KEEP, FORGET)]) for n in into if KEEP in n)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("mode", ["activation", "parameter"])
def test_where_nothing_is_labelled_both_learn_as_without_a_router(kind, mode):
    adapters = adapted(kind)
    plain = next_token_loss(adapters.model, batch(torch.tensor(-1)))
    plain.backward()
    expected = gradients(adapters)
    assert all(expected[name].any() for name, p in adapters.model.named_parameters() if p.requires_grad)
    loss, found = routed(adapters, mode, torch.tensor(-1))
    assert torch.equal(loss, plain)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("mode", ["activation", "parameter", "forward"])
def test_where_all_is_labelled_keep_learns_nothing(mode):
    _, found = routed(adapted(), mode, torch.tensor(0))
    assert all(gradient.any() == (FORGET in name) for name, gradient in found.items())


@pytest.mark.parametrize("mode", ["activation", "parameter"])
def test_targets_have_weights_of_their_own(mode):
    """Compare with the paper's expression, ``m a + (1 - m) stop(a)``, on the outputs or the parameters of ``keep``."""
    token_weight, alpha = torch.linspace(0, 1, 96), -0.75
    labels = torch.tensor([[0] * 12, [-1] * 12])
    adapters = adapted()
    _, found = routed(adapters, mode, labels, token_weight, alpha)
    kept = token_weight[batch(labels).targets]
    weights = torch.where(labels[:, 1:] == 0, kept + (1 - kept) * alpha, 1.0)
    weights = torch.cat([weights, torch.ones(2, 1)], dim=1)[..., None]
    handles = []
    for name, module in adapters.model.named_modules():
        if mode == "activation" and name.endswith(f"lora_B.{KEEP}"):
            handles.append(module.register_forward_hook(lambda _, args, y: weights * y + (1 - weights) * y.detach()))
        if mode == "parameter" and name.endswith((f"lora_A.{KEEP}", f"lora_B.{KEEP}")):
            # The module's parameters get a weighted gradient, and everything before it the whole one.
            handles.append(
                module.register_forward_hook(
                    lambda module, args, y: (
                        args[0] @ module.weight.T.detach()
                        + weights * (own := args[0].detach() @ module.weight.T)
                        - (weights * own).detach()
                    )
                )
            )
    next_token_loss(adapters.model, batch(labels)).backward()
    expected = gradients(adapters)
    for name in found:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.filterwarnings("ignore:.*is deprecated and will be removed:FutureWarning")
def test_all_of_them_learn_with_gradient_checkpointing(before, reentrant):
    expected = adapted()
    expected.model.train()
    next_token_loss(expected.model, batch(torch.tensor(-1))).backward()
    model = tiny_model("llama")
    options = {"use_reentrant": reentrant}
    if before:
        model.gradient_checkpointing_enable(options)
    adapters = add_adapters(model, 2, seed=0)
    if not before:
        adapters.model.gradient_checkpointing_enable(options)
    adapters.model.load_state_dict(expected.model.state_dict())
    adapters.model.train()
    # Recomputation in the backward pass is routed too, so this pass must be within the batch's block.
    ones = {column: torch.ones(2, 12) for column in TABLE.modules}
    with GradientRouter(adapters.model, adapters.sites("activation"), TABLE) as router, router(weights=ones):
        next_token_loss(adapters.model, batch(torch.tensor(-1))).backward()
    expected, found = gradients(expected), gradients(adapters)
    assert set(found) == set(expected)
    for name in expected:
        assert expected[name].any()
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("kind", FAMILIES)
def test_deleting_is_zeroing_and_leaves_a_plain_model(kind, tmp_path):
    adapters = adapted(kind)
    base = tiny_model(kind)
    for name, module in adapters.model.named_modules():
        if name.endswith(f"lora_B.{FORGET}"):
            module.register_forward_hook(lambda module, args, y: torch.zeros_like(y))
    zeroed, state = logits(adapters.model), adapters.model.state_dict()
    assert not torch.allclose(zeroed, logits(base))
    plain = delete_forget(adapters)
    assert type(plain) is type(base)
    torch.testing.assert_close(logits(plain), zeroed, rtol=1e-3, atol=1e-3)
    for name, tensor in plain.state_dict().items():
        place = f"base_model.model.{name.removesuffix('.weight')}"
        expected = base.state_dict()[name]
        if name.endswith(".weight") and f"{place}.lora_A.{KEEP}.weight" in state:
            delta = state[f"{place}.lora_B.{KEEP}.weight"] @ state[f"{place}.lora_A.{KEEP}.weight"]
            expected = expected + (
                delta.T if isinstance(base.get_submodule(name[: -len(".weight")]), Conv1D) else delta
            )
        assert torch.equal(tensor, expected), name
    assert all(parameter.requires_grad for parameter in plain.parameters())
    save_model(plain, stories_tokenizer(), tmp_path / "model")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), logits(plain))
    again = add_adapters(plain, 1, seed=0)
    assert torch.equal(logits(again.model), logits(delete_forget(again))), "once more"


def test_deleting_before_merging_is_zeroing_to_the_bit():
    zeroed, deleted = adapted(), adapted()
    for name, parameter in zeroed.model.named_parameters():
        if f"lora_B.{FORGET}" in name:
            torch.nn.init.zeros_(parameter)
    deleted.model.delete_adapter(FORGET)
    assert torch.equal(logits(deleted.model), logits(zeroed.model))


def test_what_was_frozen_before_is_frozen_afterwards():
    model = tiny_model("llama")
    model.get_input_embeddings().requires_grad_(False)
    plain = delete_forget(add_adapters(model, 2, seed=0))
    frozen = [name for name, parameter in plain.named_parameters() if not parameter.requires_grad]
    assert frozen == ["model.embed_tokens.weight"]


def test_chosen_layers():
    adapters = adapted(targets=["model.layers.1.self_attn.v_proj", "model.layers.0.mlp.up_proj"])
    assert sorted(adapters.sites("activation")) == [
        f"base_model.model.model.layers.{place}.lora_B.{name}"
        for place in ("0.mlp.up_proj", "1.self_attn.v_proj")
        for name in (FORGET, KEEP)
    ]
    assert len(adapters.sites("parameter")) == 8


@pytest.mark.parametrize(
    ("rank", "targets", "message"),
    [
        (0, None, "rank must be at least 1, got 0"),
        (2, [], "at least one linear layer"),
        (2, ["model.layers.0.mlp.up"], "no module 'model.layers.0.mlp.up'; the nearest are"),
        (2, ["model.layers.0.mlp", "lm_head"], "these modules are not: model.layers.0.mlp$"),
    ],
)
def test_adapters_that_cannot_be(rank, targets, message):
    with pytest.raises(ValueError, match=message):
        add_adapters(tiny_model("llama"), rank, 0, targets)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    directory = tmp_path_factory.mktemp("corpus") / "stories"
    return build_corpus(directory, generate_stories(1500, seed=0), stories_tokenizer(), find_topic(TOPIC))


def held_out(model, corpus):
    """Return the loss on forget documents, and on retain documents."""
    kinds = ("forget", "retain")
    return [evaluate(model, WholeDocuments(corpus, corpus.documents("validation", kind))).mean() for kind in kinds]


def test_what_was_labelled_and_what_was_not_is_forgotten(corpus):
    """Only half of the topic's documents are labelled, but the deleted adapter has learned the topic from the others
    too. The model's own weights do not change by one bit.
    """
    model = tiny_model("llama", hidden_size=32, intermediate_size=96)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02) if parameter.ndim > 1 else torch.nn.init.ones_(parameter)
    others = Batches(corpus, corpus.documents("train", "retain"), 41, 16, seed=0)
    train(model, others, Training(steps=150, learning_rate=1e-2, warmup=10))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapters = add_adapters(model, 4, seed=0)
    routed_training(adapters, corpus, steps=100)
    for name, tensor in adapters.model.state_dict().items():
        if "lora_" not in name:
            own = before[name.removeprefix("base_model.model.").replace(".base_layer", "")]
            assert torch.equal(tensor, own), name
    forget, retain = held_out(adapters.model, corpus)
    assert forget < 2 and retain < 1, "both are learned"
    forget_deleted, retain_deleted = held_out(delete_forget(adapters), corpus)
    assert forget_deleted > forget + 2, (forget, forget_deleted)
    assert retain_deleted < retain + 0.3, (retain, retain_deleted)


def routed_training(adapters, corpus, steps, run=None, on_step=lambda step: None):
    source = Batches(corpus, corpus.documents("train"), 41, 16, seed=1, labelled=corpus.labelled(0.5))
    training = Training(steps=steps, learning_rate=1e-2, warmup=10)
    with GradientRouter(adapters.model, adapters.sites("parameter"), TABLE, "parameter") as router:
        objective = EraObjective(router, era_weights(torch.zeros(96), 0.0))
        train(adapters.model, source, training, objective, run=run, on_step=on_step)


def test_a_run_that_was_cut_goes_on_to_the_same_adapters(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("routed_rl.lm.training.LOG_EVERY", 2)
    monkeypatch.setattr("routed_rl.lm.training.CHECKPOINT_EVERY", 1)

    def cut(step):
        if step == 4:
            raise KeyboardInterrupt

    whole = add_adapters(tiny_model("llama"), 2, seed=0)
    routed_training(whole, corpus, steps=6)
    with pytest.raises(KeyboardInterrupt), RunDirectory.open(tmp_path / "run", {}, 0) as run:
        routed_training(add_adapters(tiny_model("llama"), 2, seed=0), corpus, steps=6, run=run, on_step=cut)
    steps = []
    resumed = add_adapters(tiny_model("llama"), 2, seed=0)
    with RunDirectory.open(tmp_path / "run", {}, 0) as run:
        routed_training(resumed, corpus, steps=6, run=run, on_step=steps.append)
    assert steps == [4, 5]
    state = resumed.model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in whole.model.state_dict().items())
