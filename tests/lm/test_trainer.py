"""Our losses and router in ``transformers.Trainer`` and in trainers made from it, compared with our own loop."""

import copy
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from routed_rl.lm import RouteCollator, RoutedTrainer, RoutedTrainerMixin, next_token_loss, pad_rows, routed_batch
from routed_rl.lm.batches import Batch, Batches
from routed_rl.lm.era import TABLE, EraObjective, era_weights, expand
from routed_rl.lm.steering import SteeringObjective, steering_router
from routed_rl.lm.training import Training, make_optimizer, train
from routed_rl.routing import GradientRouter
from tests.lm.cases import LENGTH, ROWS, TOKENIZER, VOCABULARY, make_batches, make_corpus, make_llama

IGNORED = -100
NEWER = "activation_checkpointing"
CHECKPOINTING = NEWER if NEWER in TrainingArguments.__dataclass_fields__ else "gradient_checkpointing"
SETTINGS = Training(steps=6, learning_rate=1e-2, warmup=3, accumulate=2)


class SftTrainer(Trainer):
    """What TRL's ``SFTTrainer`` overrides of ``Trainer``, as far as it matters here."""

    def __init__(self, model, args, train_dataset=None, data_collator=None, **kwargs):
        super().__init__(model, args, data_collator or sft_collate, train_dataset=train_dataset, **kwargs)
        self._metrics = []

    def _set_signature_columns_if_needed(self):
        if self._signature_columns is None:
            self._signature_columns = ["input_ids", "labels", "seq_lengths", "completion_mask", "assistant_masks"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs["use_cache"] = False
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self._metrics.append(float(outputs.logits.argmax(-1).float().mean()))
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs["_prediction_loss_only"] = prediction_loss_only
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)


class RoutedSftTrainer(RoutedTrainerMixin, SftTrainer):
    pass


def sft_collate(rows):
    """TRL's data collator: it takes the columns that it knows."""
    known = [{"input_ids": row["input_ids"], "labels": row.get("labels", row["input_ids"])} for row in rows]
    return pad_rows(known)


def sft_collate_cut(rows, of=slice(None, LENGTH - 4)):
    return sft_collate([{name: value[of] for name, value in row.items()} for row in rows])


def rows_of(batches, steps):
    """Our batches in the Trainer's form: packed rows, in which positions begin again at 0."""
    for step in range(steps):
        batch = batches.batch(step)
        for i in range(len(batch)):
            yield {
                "input_ids": batch.tokens[i],
                "attention_mask": batch.real[i],
                "position_ids": batch.positions[i],
                "labels": torch.where(batch.real[i], batch.tokens[i], IGNORED),
                "route": batch.labels[i],
            }


def documents_of(batches, steps, whole=False):
    """Rows of one document each, of different lengths, as a dataset; ``whole``: with one label for the row."""
    rows = []
    for step in range(steps):
        batch = batches.batch(step)
        for tokens, real, labels in zip(batch.tokens, batch.real, batch.labels, strict=True):
            route = labels[real].tolist()
            assert len(set(route[1:-1])) == 1, "documents are labelled as a whole, but for BOS and EOS"
            rows.append({"input_ids": tokens[real].tolist(), "route": route[1] if whole else route})
    return Dataset.from_list(rows)


def make_arguments(folder, **options):
    return TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": SETTINGS.steps,
            "per_device_train_batch_size": ROWS // SETTINGS.accumulate,
            "gradient_accumulation_steps": SETTINGS.accumulate,
            "max_grad_norm": SETTINGS.clip,
            "train_sampling_strategy": "sequential",
            "use_cpu": True,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **options,
        }
    )


def routed(mode, l1=0.01):
    model = make_llama(eos_token_id=TOKENIZER.eos_token_id)
    expansion = expand(model, [0, 1], 8, seed=1)
    router = GradientRouter(model, expansion.sites(mode), TABLE, mode)
    weights = era_weights(torch.linspace(0, 1, VOCABULARY), alpha=-0.5)
    return model, router, EraObjective(router, weights, expansion, l1)


def steering():
    model, tokens = make_llama(), TOKENIZER.convert_tokens_to_ids(["bread", "tree"])
    router = steering_router(model, tokens, [0])
    return model, router, SteeringObjective(router, tokens, VOCABULARY)


def train_by_trainer(folder, made, rows, trainer=RoutedTrainer, **options):
    model, router, objective = made
    optimizer = make_optimizer(model, SETTINGS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: SETTINGS.rate(step) / SETTINGS.learning_rate)
    made = trainer(
        model=model,
        args=make_arguments(folder, **options),
        objective=objective,
        train_dataset=rows,
        optimizers=(optimizer, schedule),
    )
    with router or nullcontext():
        made.train()
    return made


def assert_same(model, expected):
    for (name, parameter), other in zip(model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(parameter, other, rtol=0, atol=1e-8, msg=lambda text, name=name: name + text)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("trainer") / "corpus")


@pytest.fixture(scope="module")
def apart(corpus):
    """Batches of one document a row."""
    documents, labelled = corpus.documents("train"), corpus.labelled(0.8)
    return Batches(corpus, documents, LENGTH, ROWS, seed=0, labelled=labelled, pack=False)


@pytest.mark.parametrize("mode", ["activation", "parameter"])
def test_the_trainer_learns_what_our_loop_learns(tmp_path, corpus, mode):
    batches = make_batches(corpus)
    ours, router, objective = routed(mode)
    with router:
        train(ours, batches, SETTINGS, objective)
    model = train_by_trainer(tmp_path, routed(mode), list(rows_of(batches, SETTINGS.steps))).model
    assert_same(model, ours)
    unrouted = make_llama()
    expand(unrouted, [0, 1], 8, seed=1)
    train(unrouted, batches, SETTINGS)
    name = "model.layers.0.mlp.up_proj.weight"
    assert (ours.get_parameter(name) - unrouted.get_parameter(name)).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("trainer", "make", "whole", "options"),
    [
        (RoutedTrainer, lambda: routed("activation"), False, {}),
        (RoutedTrainer, lambda: routed("forward", 0.0), True, {"remove_unused_columns": False}),
        (RoutedTrainer, steering, True, {"average_tokens_across_devices": False}),
        (RoutedTrainer, lambda: (make_llama(), None, next_token_loss), True, {}),
        (RoutedSftTrainer, lambda: routed("parameter"), True, {}),
        (RoutedSftTrainer, lambda: routed("activation"), False, {"remove_unused_columns": False}),
    ],
)
def test_rows_need_tokens_and_labels_only(tmp_path, apart, trainer, make, whole, options):
    """Each row is a document. Rows have different lengths, and parts of a step different numbers of targets."""
    ours, router, objective = make()
    with router or nullcontext():
        train(ours, apart, SETTINGS, objective)
    made = train_by_trainer(tmp_path, make(), documents_of(apart, SETTINGS.steps, whole), trainer, **options)
    assert_same(made.model, ours)


def test_a_model_that_takes_no_further_arguments(tmp_path, apart):
    """The Trainer counts targets for a model whose own loss could not use their number, too."""
    made = routed("activation")
    made[0].accepts_loss_kwargs = False
    ours, router, objective = routed("activation")
    with router:
        train(ours, apart, SETTINGS, objective)
    assert_same(train_by_trainer(tmp_path, made, documents_of(apart, SETTINGS.steps)).model, ours)


@dataclass
class Tokenizer:
    """Padding by transformers' own tokenizers, on one side."""

    side: str

    def __new__(cls, side):
        made = copy.deepcopy(TOKENIZER)
        made.padding_side, made.pad_token = side, made.eos_token
        return made


COLLATORS = {
    "ours": pad_rows,
    "Trainer's": DataCollatorWithPadding(Tokenizer("right")),
    "Seq2Seq": DataCollatorForSeq2Seq(Tokenizer("right")),
    "Seq2Seq, left": DataCollatorForSeq2Seq(Tokenizer("left")),
    "LanguageModeling": DataCollatorForLanguageModeling(Tokenizer("right"), mlm=False, pad_to_multiple_of=8),
    "LanguageModeling, left": DataCollatorForLanguageModeling(Tokenizer("left"), mlm=False),
    "TRL's": sft_collate,
    "one row": DataCollatorWithFlattening(),
    "one row, positions lost": DataCollatorWithFlattening(return_position_ids=False),
}
ROWS_OF_TEXT = [
    {"input_ids": [5, 6, 7, 8, 9], "route": [-1, -1, 0, 0, -1]},
    {"input_ids": [10, 11, 12], "route": -1},
    {"input_ids": [13, 14, 15, 16], "route": 0},
]


@pytest.mark.parametrize("name", COLLATORS)
def test_padded_and_joined_rows_have_the_losses_of_single_rows(name):
    model, router, objective = routed("activation", 0.0 if name.startswith("one row") else 0.01)
    rows = ROWS_OF_TEXT
    if name.startswith("Seq2Seq"):  # it takes rows with labels only
        rows = [{**row, "labels": row["input_ids"]} for row in rows]
    batch = RouteCollator(COLLATORS[name])(rows)
    assert int((batch["labels"] != IGNORED).sum()) == 4 + 2 + 3, "the first token of a document is no target"
    made = routed_batch(batch)
    expected = []
    with router:
        for row in rows:
            tokens = torch.tensor([row["input_ids"]])
            labels = torch.as_tensor(row["route"]).expand(tokens.shape)
            expected.append(objective(model, Batch(tokens, labels, torch.ones_like(tokens[:, 1:], dtype=torch.bool))))
        sum(expected).backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        model.zero_grad()
        loss = objective(model, made)
        loss.backward()
    torch.testing.assert_close(loss, sum(expected), rtol=0, atol=1e-9)
    for parameter, other in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, other, rtol=0, atol=1e-9)


def test_a_data_collator_of_the_users_own():
    """It replaces the trainer's, and puts rows of one length together as they are."""
    rows = [{"input_ids": [5, 6, 7], "route": 0}, {"input_ids": [8, 9, 3], "route": -1}]
    made = routed_batch(default_data_collator(rows))
    assert made.labels.tolist() == [[0, 0, 0], [-1, -1, -1]] and made.scored.all()


def test_a_label_of_a_row_is_not_that_of_the_eos_at_its_end():
    """On whichever side the row is padded; labels of single tokens stay as they are."""
    rows = [
        {"input_ids": [5, 1, 6, 1], "route": 0},
        {"input_ids": [7, 1], "route": 0},
        {"input_ids": [8, 9], "route": 0},
    ]
    right, left = [[0, 0, 0, -1], [0, -1, -1, -1], [0, 0, -1, -1]], [[0, 0, 0, -1], [-1, -1, 0, -1], [-1, -1, 0, 0]]
    for name, expected in (
        ("ours", right),
        ("LanguageModeling, left", left),
        ("one row", [[0, 0, 0, -1, 0, -1, 0, 0]]),
    ):
        assert RouteCollator(COLLATORS[name], eos=(1,))(rows)["route"].tolist() == expected, name
    assert RouteCollator(eos=(1,))([{"input_ids": [5, 1], "route": [0, 0]}])["route"].tolist() == [[0, 0]]


@pytest.mark.parametrize("of", [slice(None, 3), slice(-3, None)])
def test_cut_rows_keep_the_labels_of_their_tokens(of):
    batch = RouteCollator(lambda rows: sft_collate_cut(rows, of))(ROWS_OF_TEXT)
    assert batch["route"][0].tolist() == ROWS_OF_TEXT[0]["route"][of]
    assert batch["route"][1:].tolist() == [[-1] * 3, [0] * 3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"input_ids": [1, 2]}, "no column 'route', with 0 .* set remove_unused_columns=False"),
        ({"input_ids": [1, 2], "route": 1}, r"'route' must be 0 \(forget\) or -1 \(all else\), got 1"),
        ({"input_ids": [1, 2], "route": True}, "got True"),
        ({"input_ids": [1, 2], "route": [0, 0.5]}, "got 0.5"),
        ({"input_ids": [1, 2], "route": [0, 0, 0]}, "one for each of its 2 tokens, got 3 labels"),
    ],
)
def test_rows_with_wrong_labels(row, message):
    with pytest.raises(ValueError, match=message) as error:
        RouteCollator()([row])
    assert "\n" not in str(error.value)


def test_a_collator_that_loses_the_tokens():
    with pytest.raises(ValueError, match="changes the tokens of a row: give one label 'route' for each row"):
        RouteCollator(lambda rows: {"input_ids": torch.tensor([[9, 9, 9]])})([{"input_ids": [1, 2], "route": [0, -1]}])
    with pytest.raises(ValueError, match=r"a batch of shape \(1, 3\) of rows of \[2, 2\] tokens"):
        RouteCollator(lambda rows: {"input_ids": torch.tensor([[9, 9, 9]])})([{"input_ids": [1, 2], "route": 0}] * 2)


@pytest.mark.parametrize("trainer", [RoutedTrainer, RoutedSftTrainer])
@pytest.mark.parametrize("replaced", [False, True])
def test_a_column_that_is_lost_is_named_in_one_sentence(tmp_path, trainer, replaced):
    """Also where the user replaces the data collator by one that does not know the column."""
    rows = [{"input_ids": [1, 2, 3], **({"route": 0} if replaced else {})}] * 8
    model = make_llama()
    made = trainer(model, make_arguments(tmp_path), objective=next_token_loss, train_dataset=Dataset.from_list(rows))
    if replaced:
        made.data_collator = lambda rows: {"input_ids": torch.tensor([row["input_ids"] for row in rows])}
    with pytest.raises(ValueError, match=r"no column 'route'.* set remove_unused_columns=False") as error:
        made.train()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("trainer", [RoutedTrainer, RoutedSftTrainer])
def test_the_evaluation_loss_is_the_objectives(tmp_path, apart, trainer):
    model, router, objective = routed("activation")
    rows = documents_of(apart, 1)
    seen = []

    def measure(prediction):
        seen.append(prediction)
        return {"right": float((prediction.predictions[:, :-1].argmax(-1) == prediction.label_ids[:, 1:]).mean())}

    for outputs in (False, True):
        made = trainer(
            model,
            make_arguments(tmp_path, per_device_eval_batch_size=ROWS),
            train_dataset=rows,
            eval_dataset=rows,
            objective=objective,
            compute_metrics=measure if outputs else None,
        )
        with router:
            found = made.evaluate()
            batch = apart.batch(0)
            with torch.no_grad():
                expected = objective(model, batch) / batch.scored.sum()
        assert found["eval_loss"] == pytest.approx(float(expected), abs=1e-6)
    (prediction,) = seen
    assert prediction.predictions.shape == (*batch.tokens.shape, VOCABULARY)
    with torch.no_grad():
        logits = model(input_ids=batch.tokens).logits
    torch.testing.assert_close(torch.tensor(prediction.predictions)[batch.real], logits[batch.real], check_dtype=False,
                               rtol=0, atol=1e-5)  # fmt: skip
    assert (prediction.label_ids != IGNORED).sum() == batch.scored.sum()


@pytest.mark.parametrize(
    ("options", "others", "message"),
    [
        ({}, {"compute_loss_func": lambda *_, **__: 0}, "leave out compute_loss_func"),
        ({"label_smoothing_factor": 0.1}, {}, "label smoothing"),
        ({CHECKPOINTING: True}, {}, "set activation_checkpointing=False"),
    ],
)
def test_arguments_that_routing_cannot_work_with(tmp_path, options, others, message):
    model, _, objective = routed("activation")
    with pytest.raises(ValueError, match=message):
        RoutedTrainer(model, make_arguments(tmp_path, **options), objective=objective, **others)


def test_several_gpus_in_one_process(tmp_path, monkeypatch):
    arguments = make_arguments(tmp_path)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(ValueError, match="a process for each of the 2 GPUs: start with torchrun"):
        RoutedTrainer(make_llama(), arguments, objective=next_token_loss)
