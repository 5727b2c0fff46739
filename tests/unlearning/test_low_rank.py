"""Unlearning with less memory: adapters, blocks computed again, weights in half precision, a cached reference."""

import copy
import warnings

import pytest
import torch
from safetensors.torch import load_file

from routed_rl.lm import Training, load_model, save_model, train
from routed_rl.lm.adapters import add_low_rank
from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, PADDING, Batch
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from routed_rl.options.undo import Relearn
from routed_rl.unlearning import SUPPRESSORS, MaxEnt, Npo, Rmu, Undial, attack, undo, unlearn
from routed_rl.unlearning.attacked import attacked_size, save_attacked
from routed_rl.unlearning.attacks import Relearning
from routed_rl.unlearning.copies import TrainedCopy, kept
from routed_rl.unlearning.pipeline import _Data
from tests.lm.tiny_models import tiny_model
from tests.unlearning.questions import for_method

SMALL = {"batch_size": 4, "length": 33, "progress": False}
DEPTH = {"rmu": {"depth": 1}}  # the model has two blocks
TOPIC = next(story.topic for story in generate_stories(1, 0))
STORIES = list(generate_stories(60, 1))
SETS = tuple([story.text for story in STORIES if (story.topic == TOPIC) == forget] for forget in (True, False))


@pytest.fixture(scope="module")
def tokenizer():
    return stories_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """Return a model that knows both kinds of stories a little."""
    model = tiny_model("llama", hidden_size=32)
    train(model, _Data(model, tokenizer, *SETS, 33, True).mixture(8, 0), Training(30, 1e-2, warmup=5))
    return model.eval()


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def ranks(after, before):
    """The rank of each matrix's change."""
    changes = {name: (after[name] - tensor).double() for name, tensor in before.items() if tensor.ndim == 2}
    return {name: int(torch.linalg.matrix_rank(change, atol=1e-5)) for name, change in changes.items()}


@pytest.mark.parametrize("method", SUPPRESSORS)
def test_low_rank_suppression_changes_linear_layers_by_that_rank_and_no_other_weight(method, model, tokenizer):
    before = state(model)
    sets, options = for_method(method, *SETS)
    options |= {"steps": 3, "learning_rate": 0.02, "rank": 2, "allow_overlap": True, **SMALL, **DEPTH.get(method, {})}
    unlearned = unlearn(model, tokenizer, *sets, method, **options)
    assert_same(state(model), before)
    after = state(unlearned)
    changed = {name: rank for name, rank in ranks(after, before).items() if rank}
    wanted = {"rmu": "layers.0.mlp.down_proj", "repselect": ".mlp."}.get(method, "proj")
    assert set(changed) == {name for name in before if wanted in name} and set(changed.values()) <= {1, 2}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items() if name not in changed)
    assert all(parameter.requires_grad for parameter in unlearned.parameters()) and not unlearned.training
    own = {parameter.data_ptr() for parameter in model.parameters()}
    assert not own & {parameter.data_ptr() for parameter in unlearned.parameters()}


def test_adapters_are_a_folder_of_peft_that_is_loaded_like_the_merged_model(model, tokenizer, tmp_path):
    save_model(model, tokenizer, tmp_path / "base")
    base = load_model(tmp_path / "base").eval()
    options = {"method": "graddiff", "steps": 3, "learning_rate": 0.02, "rank": 2, **SMALL}
    adapted = unlearn(base, tokenizer, *SETS, merge=False, **options)
    adapted.save_pretrained(tmp_path / "adapter")
    files = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert files >= {"adapter_config.json", "adapter_model.safetensors"} and "model.safetensors" not in files
    assert_same(state(load_model(tmp_path / "adapter")), state(unlearn(base, tokenizer, *SETS, **options)))
    embedding = adapted.get_input_embeddings().weight
    assert embedding.data_ptr() == base.get_input_embeddings().weight.data_ptr(), "the base is shared"
    assert base.get_input_embeddings().weight.requires_grad and not embedding.requires_grad


@pytest.mark.parametrize("merge", [True, False])
def test_a_model_and_its_modes_are_as_before(merge, model, tokenizer):
    own = copy.deepcopy(model).train()
    own.model.layers[0].eval()
    own.lm_head.requires_grad_(False)
    modes = [module.training for module in own.modules()]
    unlearn(own, tokenizer, *SETS, "undial", steps=1, rank=1, merge=merge, **SMALL)
    assert modes == [module.training for module in own.modules()]
    trained = {name for name, parameter in own.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in own.named_parameters()} - {"lm_head.weight"}
    assert not any("lora" in name for name, _ in own.named_modules())


def test_low_rank_distillation_learns_on_noised_weights(model, tokenizer):
    noise = {"alpha": 0.4, "within": None, **SMALL}
    noised = state(undo(model, tokenizer, *SETS, steps=0, **noise))
    student = undo(model, tokenizer, *SETS, steps=4, learning_rate=0.02, rank=1, **noise)
    changed = {name: rank for name, rank in ranks(state(student), noised).items() if rank}
    assert changed == {name: 1 for name in noised if "proj" in name}
    assert torch.equal(noised["lm_head.weight"], state(student)["lm_head.weight"])


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_blocks_that_are_computed_again_give_the_same_numbers(family, rank, tokenizer):
    model = tiny_model(family).eval()
    again = {"gradient_checkpointing": True}
    calls = [
        lambda **o: state(unlearn(model, tokenizer, *SETS, "rmu", steps=2, depth=1, rank=rank, **SMALL, **o)),
        lambda **o: state(unlearn(model, tokenizer, *SETS, "undial", steps=2, rank=rank, **SMALL, **o)),
        lambda **o: state(undo(model, tokenizer, *SETS, steps=2, within=None, rank=rank, **SMALL, **o)),
        lambda **o: {
            str(rate): torch.tensor(curve.forget_loss.tolist())
            for rate, curve in attack(
                model, tokenizer, *SETS, learning_rates=(1e-2,), steps=2, measured=(0, 2), rank=rank, **SMALL, **o
            ).groupby("learning_rate")
        },
    ]
    for call in calls:
        assert_same(call(**again), call())


def test_a_batch_in_parts_gives_the_same_numbers(model, tokenizer):
    model = copy.deepcopy(model).double()
    options = {"steps": 2, "learning_rate": 1e-3, **SMALL}
    for call in (
        lambda **parts: unlearn(model, tokenizer, *SETS, "npo", **options, **parts),
        lambda **parts: undo(model, tokenizer, *SETS, within=None, **options, **parts),
    ):
        for found, expected in zip(call(accumulate=4).parameters(), call().parameters(), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    options |= {"learning_rates": (1e-3,), "measured": (2,)}
    del options["learning_rate"]
    parts, whole = (attack(model, tokenizer, *SETS, accumulate=n, **options).forget_loss.item() for n in (2, 1))
    assert parts == pytest.approx(whole, abs=1e-6)
    with pytest.raises(ValueError, match="8 rows cannot be shared evenly by 1 processes, in 3 parts"):
        unlearn(model, tokenizer, *SETS, accumulate=3, **SMALL)


def test_checkpointing_keeps_only_the_inputs_of_blocks(model, tokenizer):
    """It is switched on during training alone. A model that has it on keeps it."""
    sizes = {}
    batch = _Data(model, tokenizer, *SETS, 33, True).mixture(4, 0).batch(0)
    for on in (False, True):
        trained = TrainedCopy(model, gradient_checkpointing=on)
        trained.model.train()
        kept_bytes: dict[int, int] = {}

        def pack(tensor, kept_bytes=kept_bytes):
            kept_bytes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trained.model.model(**batch.inputs)
        sizes[on] = sum(kept_bytes.values())
        result = trained.result()
        assert not any(getattr(module, "gradient_checkpointing", False) for module in result.modules())
    assert sizes[True] < 0.5 * sizes[False]
    own = copy.deepcopy(model)
    own.gradient_checkpointing_enable()
    unlearned = unlearn(own, tokenizer, *SETS, steps=1, gradient_checkpointing=True, **SMALL)
    assert unlearned.model.layers[0].gradient_checkpointing


def test_weights_come_back_in_the_dtype_that_they_came_in(model, tokenizer):
    half = copy.deepcopy(model).to(torch.bfloat16)
    kinds = {name: parameter.dtype for name, parameter in half.named_parameters()}
    for options in ({}, {"master_weights": True}, {"rank": 2}, {"gradient_checkpointing": True}):
        unlearned = unlearn(half, tokenizer, *SETS, steps=2, **options, **SMALL)
        student = undo(half, tokenizer, *SETS, steps=2, within=None, **options, **SMALL)
        for made in (unlearned, student):
            assert {name: parameter.dtype for name, parameter in made.named_parameters()} == kinds
            assert not all(
                torch.equal(own, other) for own, other in zip(made.parameters(), half.parameters(), strict=True)
            )
    adapted = unlearn(half, tokenizer, *SETS, steps=1, rank=2, merge=False, **SMALL)
    kinds = {parameter.dtype for name, parameter in adapted.named_parameters() if "lora_" in name}
    assert kinds == {torch.float32}, "adapters are few, so they are in full precision"


def test_half_precision_loses_small_steps_unless_master_weights_are_asked_for(model, tokenizer):
    """Steps of a quarter of the distance between two numbers of the format add up in master weights alone."""
    half = copy.deepcopy(model).to(torch.bfloat16)
    with torch.no_grad():
        for parameter in half.parameters():
            parameter.fill_(0.5)
    options = {"method": "graddiff", "steps": 6, "learning_rate": 9e-4, **SMALL}
    with pytest.warns(UserWarning, match="are in bfloat16, and 100% .* learning rate 0.0009: set master_weights=True"):
        unmoved = unlearn(half, tokenizer, *SETS, **options)
    assert_same(state(unmoved), state(half))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        moved = unlearn(half, tokenizer, *SETS, master_weights=True, **options)
    assert not torch.equal(moved.lm_head.weight, half.lm_head.weight)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"merge": False}, "merge=False needs a rank"),
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"rank": 2, "method": "rmu", "depth": 1, "family": "mixtral"}, "none of the weights that are trained belongs"),
    ],
)
def test_mistakes_are_said(given, said, model, tokenizer):
    options = {"steps": 1, **SMALL, **given}
    chosen = tiny_model(options.pop("family")) if "family" in options else model
    with pytest.raises(ValueError, match=said):
        unlearn(chosen, tokenizer, *SETS, **options)


def test_models_with_adapters_are_refused(model, tokenizer):
    adapted = unlearn(model, tokenizer, *SETS, steps=1, rank=1, merge=False, **SMALL)
    for call in (
        lambda: unlearn(adapted, tokenizer, *SETS, rank=1, **SMALL),
        lambda: undo(adapted, tokenizer, *SETS, **SMALL),
        lambda: attack(adapted, tokenizer, *SETS, rank=1, **SMALL),
    ):
        with pytest.raises(ValueError, match=r"has adapters: merge them .* model.merge_and_unload\(\)"):
            call()


# --- the reference -----------------------------------------------------------------------------------


def make_batches(count=3, rows=4, length=12):
    """Packed batches of two examples a row, some of them with padding, forget rows in turn with retain rows."""
    generator = torch.Generator().manual_seed(0)
    for i in range(count):
        tokens = torch.randint(0, 96, (rows, length), generator=generator)
        examples = (torch.arange(length) >= 5).long().expand(rows, -1).clone()
        examples[0, length - i :] = PADDING
        labels = torch.where(torch.arange(rows)[:, None] % 2 == 0, FORGET_LABEL, NO_LABEL).expand(-1, length)
        scored = (examples[:, 1:] == examples[:, :-1]) & (examples[:, 1:] != PADDING)
        yield Batch(tokens, labels, scored, examples, packed=True)


def gradients_of(objective, model, batch):
    loss = objective(model, batch)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return {"loss": loss.detach(), **found}


def test_losses_known_before_training_give_the_gradients_of_a_second_model(monkeypatch):
    model, trained = (tiny_model("llama", seed).double() for seed in (0, 1))
    batches = list(make_batches())
    expected = Npo().objective(model, 0)
    monkeypatch.setattr(copy, "deepcopy", lambda *args: pytest.fail("a second model was made"))
    cached = Npo().objective(model.train(), 0, batches=batches)
    assert model.training
    longer = [batch for batch in batches for _ in range(2)]  # an epoch comes again
    for batch in [*longer, batches[0].rows(slice(1, 3)), batches[1].rows(torch.tensor([2, 0]))]:
        found, wanted = (gradients_of(objective, trained, batch) for objective in (cached, expected))
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
    other = next(make_batches(1, rows=6))
    with pytest.raises(ValueError, match="losses of 1 rows are unknown: pass all batches"):
        cached(trained, other)


@pytest.mark.parametrize("method", [MaxEnt(retain="kl"), Undial(), Npo(), Rmu(depth=1)], ids=repr)
def test_a_reference_that_is_passed_gives_the_numbers_of_a_copy(method, monkeypatch):
    original = tiny_model("llama").eval()
    one, other = copy.deepcopy(original), copy.deepcopy(original)
    copied = method.objective(one, 0)
    monkeypatch.setattr(copy, "deepcopy", lambda *args: pytest.fail("a second model was made"))
    passed = method.objective(other, 0, original=original)
    for model in (one, other):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    for batch in make_batches(2):
        assert_same(gradients_of(passed, other, batch), gradients_of(copied, one, batch))
    assert all(parameter.grad is None for parameter in original.parameters())


def test_kept_restores_a_model_after_an_error():
    model = tiny_model("llama").train()
    with pytest.raises(RuntimeError), kept(model):
        assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
        raise RuntimeError
    assert model.training and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_size_of_attacked_models_is_that_of_their_adapters(name, tmp_path):
    """Of all linear layers but the last, GPT-2's too."""
    model = tiny_model(name)
    size = attacked_size(Relearning(Relearn((1e-3,), measured=(200,), rank=2)), model)
    save_attacked(add_low_rank(model, 2, seed=0), model, tmp_path)
    assert size == sum(tensor.nbytes for tensor in load_file(tmp_path / "adapter_model.safetensors").values())
