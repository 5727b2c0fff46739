"""Unlearning in single calls: the user's own model, two lists of strings."""

import warnings

import datasets
import pytest
import torch

from routed_rl.lm import Training, evaluate, text_corpus, train
from routed_rl.lm.stories import generate_stories, stories_tokenizer
from routed_rl.unlearning import SUPPRESSORS, attack, undo, unlearn
from routed_rl.unlearning.pipeline import _Data
from tests.lm.tiny_models import tiny_model
from tests.unlearning.questions import for_method

SMALL = {"batch_size": 4, "length": 33, "progress": False}
TOPIC = next(story.topic for story in generate_stories(1, 0))
DEPTH = {"rmu": {"depth": 1}}  # the model has two blocks
STORIES = list(generate_stories(150, 1))
FORGET = [story.text for story in STORIES if story.topic == TOPIC]
RETAIN = [story.text for story in STORIES if story.topic != TOPIC]


@pytest.fixture(scope="module")
def tokenizer():
    return stories_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    """Return a model that knows both kinds of stories a little."""
    model = tiny_model("llama", hidden_size=32)
    train(model, _Data(model, tokenizer, FORGET, RETAIN, 33, True).mixture(8, 0), Training(60, 1e-2, warmup=5))
    return model.eval()


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def losses(model, tokenizer):
    data = _Data(model, tokenizer, FORGET, RETAIN, 33, True)
    return [evaluate(model, data.measured(kind)).mean() for kind in ("forget", "retain")]


def test_unlearning_raises_the_forget_loss_of_a_copy_and_is_repeatable(model, tokenizer):
    before = weights(model)
    options = {"method": "graddiff", "steps": 60, "learning_rate": 3e-3, **SMALL}
    unlearned = unlearn(model, tokenizer, FORGET, RETAIN, **options)
    assert torch.equal(weights(model), before)
    forget, retain = losses(unlearned, tokenizer)
    forget_before, retain_before = losses(model, tokenizer)
    assert forget > forget_before + 1 > forget_before + 2 * abs(retain - retain_before)
    rows = datasets.Dataset.from_dict({"text": FORGET}), datasets.Dataset.from_dict({"text": RETAIN})
    assert torch.equal(weights(unlearn(model, tokenizer, *rows, **options)), weights(unlearned))
    corpus = text_corpus(tokenizer, FORGET, RETAIN)
    assert torch.equal(weights(unlearn(model, tokenizer, corpus, **options)), weights(unlearned))
    assert not torch.equal(weights(unlearn(model, tokenizer, *rows, **options, seed=1)), weights(unlearned))


@pytest.mark.parametrize("method", SUPPRESSORS)
def test_every_method_is_one_call(method, model, tokenizer):
    sets, options = for_method(method, FORGET, RETAIN)
    options |= DEPTH.get(method, {})
    unlearned = unlearn(model, tokenizer, *sets, method, steps=2, allow_overlap=True, **SMALL, **options)
    assert not torch.equal(weights(unlearned), weights(model))
    assert all(parameter.requires_grad for parameter in unlearned.parameters())


def test_undo_is_noise_and_then_distillation(model, tokenizer):
    """Without steps the student is the noised model. With steps it comes nearer to the teacher's losses."""
    shrunk = {"alpha": 1.0, "beta": 0.0, "steps": 0, "within": None, **SMALL}
    assert not weights(undo(model, tokenizer, FORGET, RETAIN, touched="all", **shrunk)).any()
    for noised, own in zip(
        undo(model, tokenizer, FORGET, RETAIN, **shrunk).parameters(), model.parameters(), strict=True
    ):
        assert not noised.any() if own.dim() > 1 else torch.equal(noised, own)
    student = undo(model, tokenizer, FORGET, RETAIN, steps=30, within=None, **SMALL)
    start = undo(model, tokenizer, FORGET, RETAIN, steps=0, within=None, **SMALL)
    for taught, began, teacher in zip(*(losses(of, tokenizer) for of in (student, start, model)), strict=True):
        assert abs(taught - teacher) < abs(began - teacher)


def test_undo_says_when_little_was_distilled_or_too_little(model, tokenizer):
    """Without noise the student has its teacher's loss from the start; still it takes the least number of steps."""
    with pytest.warns(
        UserWarning, match="alpha=0 cost so little that .* stopped after 0 steps, its least number: .* raise alpha"
    ):
        same = undo(model, tokenizer, FORGET, RETAIN, alpha=0.0, steps=30, least=0, **SMALL)
    assert torch.equal(weights(same), weights(model))
    with pytest.warns(UserWarning, match="stopped after 20 steps, its least number"):
        taught = undo(model, tokenizer, FORGET, RETAIN, alpha=0.1, steps=30, least=20, within=9.0, **SMALL)
    assert not torch.equal(
        weights(taught), weights(undo(model, tokenizer, FORGET, RETAIN, alpha=0.1, steps=0, within=None))
    )
    with pytest.warns(UserWarning, match="after 2 steps the student's retain loss is .*: raise steps"):
        undo(model, tokenizer, FORGET, RETAIN, alpha=0.9, steps=2, **SMALL)


def test_an_attack_lowers_the_forget_loss_of_a_copy(model, tokenizer):
    before = weights(model)
    rates = (3e-3, 1e-4)
    found = attack(model, tokenizer, FORGET, RETAIN, learning_rates=rates, steps=10, measured=(0, 5, 10, 99), **SMALL)
    assert torch.equal(weights(model), before)
    assert list(found.columns) == ["learning_rate", "step", "forget_loss", "retain_loss"]
    assert found.step.tolist() == [0, 5, 10] * 2
    assert found[found.step == 0].forget_loss.tolist() == pytest.approx([losses(model, tokenizer)[0]] * 2)
    assert found[(found.step == 10) & (found.learning_rate == 3e-3)].forget_loss.item() < found.forget_loss[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"method": "nqo"}, "method must be one of graddiff.*'nqo'"),
        ({"strength": 2}, "npo has no setting 'strength'; its settings are steps"),
        ({"retain": None}, "retain is missing"),
        ({"forget": "one text"}, "forget must be a list of documents, got one string: 'one text'"),
        ({"forget": []}, "forget has no documents"),
        (
            {"retain": [{"question": "?"}]},
            r"retain\[0\]: a row needs texts in .* this one has 'question'",
        ),
        ({"forget": ["x", None]}, r"forget\[1\] must be a text"),
        ({"batch_size": 10**6}, r"or batch_size=\d+ or less"),
    ],
)
def test_mistakes_are_said(given, said, model, tokenizer):
    options = {"forget": FORGET, "retain": RETAIN, **SMALL, **given}
    with pytest.raises(ValueError, match=said):
        unlearn(model, tokenizer, **options)
    if "method" not in given and "strength" not in given:
        with pytest.raises(ValueError, match=said):
            undo(model, tokenizer, **options)
        with pytest.raises(ValueError, match=said):
            attack(model, tokenizer, **options)
    else:
        assert given


def test_a_corpus_and_a_retain_set_exclude_each_other(model, tokenizer):
    corpus = text_corpus(tokenizer, FORGET, RETAIN)
    for call in (unlearn, undo, attack):
        with pytest.raises(ValueError, match="a Corpus has both sets: leave out retain"):
            call(model, tokenizer, corpus, RETAIN, **SMALL)


def test_an_attack_says_when_sets_look_swapped_and_when_it_diverges(model, tokenizer):
    unlearned = unlearn(model, tokenizer, FORGET, RETAIN, "graddiff", steps=60, learning_rate=3e-3, **SMALL)
    short = {"learning_rates": (1e-4,), "steps": 1, "measured": (0, 1), **SMALL}
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        attack(unlearned, tokenizer, FORGET, RETAIN, **short)
    with pytest.warns(UserWarning, match="Are forget and retain swapped"):
        attack(unlearned, tokenizer, RETAIN, FORGET, **short)
    with pytest.warns(UserWarning, match=r"the attack at learning rate 1e\+30 diverged"):
        attack(model, tokenizer, FORGET, RETAIN, learning_rates=(1e30,), steps=12, measured=(0, 12), **SMALL)


def test_an_attack_needs_a_learning_rate(model, tokenizer):
    with pytest.raises(ValueError, match="learning_rates must be one or more, got none"):
        attack(model, tokenizer, FORGET, RETAIN, learning_rates=())
