"""Methods that teach another answer: pairs stay together, the loss is that of the formula, and mistakes are said."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from routed_rl.errors import UserError
from routed_rl.lm import from_row, text_corpus
from routed_rl.lm.alternatives import (
    DONT_KNOW,
    Alternatives,
    answered,
    check_pairs,
    chosen_answers,
    tokenised_questions,
    with_answer,
)
from routed_rl.lm.batches import ALTERNATIVE_LABEL, FORGET_LABEL, NO_LABEL, Batch, Batches
from routed_rl.lm.documents import Document
from routed_rl.lm.stories import stories_tokenizer
from routed_rl.lm.suppressors.idk_dpo import preference
from routed_rl.lm.suppressors.suppressor import alternative_targets, forget_targets, retain_targets
from routed_rl.unlearning import AltPo, ForgetAndRetain, IdkDpo, IdkNll, Sam, unlearn
from tests.lm.test_losses import VOCABULARY, Bigram
from tests.lm.texts import corpus_of
from tests.unlearning.questions import as_questions
from tests.unlearning.test_losses import BEFORE, NOW, A, average, log_sigmoid, nll
from tests.unlearning.test_pipeline import FORGET, RETAIN, SMALL, model, tokenizer  # noqa: F401

QUESTIONS, OTHERS = as_questions(FORGET), as_questions(RETAIN)
TOKENIZER = stories_tokenizer()


@st.composite
def groups(draw):
    """Return groups of rows: a forget row and its alternative, or a retain row. Targets may be left out."""
    kinds = draw(st.lists(st.sampled_from(["pair", "retain"]), min_size=1, max_size=5))
    length = draw(st.integers(2, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    labels = [label for kind in kinds for label in ([0, 1] if kind == "pair" else [-1])]
    tokens = torch.randint(0, VOCABULARY, (len(labels), length), generator=generator)
    scored = torch.rand(len(labels), length - 1, generator=generator) < draw(st.sampled_from([0.3, 0.8, 1.0]))
    return Batch(tokens, torch.tensor(labels)[:, None].expand_as(tokens).clone(), scored)


def rows_of(batch, label):
    """Return for each row of a label its scored targets: the token before each target, and the target."""
    return [
        [
            (int(batch.tokens[row, t]), int(batch.tokens[row, t + 1]))
            for t in range(batch.tokens.shape[1] - 1)
            if batch.scored[row, t]
        ]
        for row in range(len(batch))
        if batch.labels[row, 0] == label
    ]


def ce(batch, label):
    return average(nll(NOW, *pair) for row in rows_of(batch, label) for pair in row)


def dpo(beta):
    def value(batch):
        values = []
        for original, other in zip(rows_of(batch, FORGET_LABEL), rows_of(batch, ALTERNATIVE_LABEL), strict=True):
            log_ratio = {
                name: sum(nll(BEFORE, *pair) - nll(NOW, *pair) for pair in row)  # log p(now) - log p(before)
                for name, row in (("original", original), ("other", other))
            }
            values.append(-2 / beta * log_sigmoid(beta * (log_ratio["other"] - log_ratio["original"])))
        return average(values) + A * ce(batch, NO_LABEL)

    return value


FORMULAS = [
    (IdkNll(A), lambda batch: ce(batch, ALTERNATIVE_LABEL) + A * ce(batch, NO_LABEL)),
    (IdkDpo(A, 0.3), dpo(0.3)),
    (AltPo(A, 0.3), dpo(0.3)),
]


@pytest.mark.parametrize(("method", "formula"), FORMULAS, ids=[repr(method) for method, _ in FORMULAS])
@settings(max_examples=25, deadline=None)
@given(groups())
def test_losses_are_those_of_loops(method, formula, batch):
    with torch.no_grad():
        assert float(method.loss(BEFORE, 0)(NOW, batch)) == pytest.approx(formula(batch), rel=1e-9, abs=1e-9)
        known = method.objective(BEFORE, 0, batches=[batch])
        count = int(batch.scored.sum())
        assert float(known(NOW, batch)) == pytest.approx(count * formula(batch), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("method", [method for method, _ in FORMULAS], ids=repr)
@settings(max_examples=25, deadline=None)
@given(groups(), st.data())
def test_parts_add_up_wherever_no_pair_is_cut_and_a_cut_pair_is_refused(method, batch, data):
    loss = method.loss(BEFORE, 0)
    cuts = [0, *sorted(data.draw(st.lists(st.integers(0, len(batch)), max_size=3))), len(batch)]
    parts = [batch.rows(slice(*cut)) for cut in itertools.pairwise(cuts)]
    is_cut = any(len(part) and part.labels[0, 0] == ALTERNATIVE_LABEL for part in parts)
    with torch.no_grad():
        if is_cut and not isinstance(method, IdkNll):
            with pytest.raises(ValueError, match="each forget row needs its alternative as the next row"):
                sum(float(loss(NOW, part)) for part in parts)
        else:
            total = sum(float(loss(NOW, part)) for part in parts)
            assert total == pytest.approx(float(loss(NOW, batch)), rel=1e-9, abs=1e-9)


def test_the_loss_falls_as_the_alternative_rises_and_as_the_original_falls():
    """By hand, for losses that have risen by 2 and fallen by 1: -2/0.5 log sigmoid(0.5 (2 - -1))."""
    found = preference(torch.tensor(2.0, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64), 0.5)
    assert float(found) == pytest.approx(4 * math.log(1 + math.exp(-1.5)), rel=1e-12)
    steps = torch.linspace(-20, 20, 41, dtype=torch.float64)
    assert (preference(steps, torch.tensor(0.0), 0.1).diff() < 0).all(), "the original's loss rises"
    assert (preference(torch.tensor(0.0), steps, 0.1).diff() > 0).all(), "the alternative's loss rises"


@pytest.mark.parametrize("method", [IdkNll(), IdkDpo(), AltPo()], ids=repr)
def test_a_step_teaches_the_alternative_and_keeps_the_rest(method):
    tokens = torch.tensor([[0, 1, 2, 3], [0, 2, 1, 0], [4, 5, 6, 7]])
    labels = torch.tensor([[0] * 4, [1] * 4, [-1] * 4])
    batch = Batch(tokens, labels, torch.ones(3, 3, dtype=torch.bool))
    trained = Bigram().double().eval()
    with torch.no_grad():
        trained.table.weight.zero_()
        trained.table.weight[tokens[[0, 2], :-1].flatten(), tokens[[0, 2], 1:].flatten()] = 2.0
    method.objective(trained, 0)(trained, batch).backward()
    gradient = trained.table.weight.grad[tokens[:, :-1], tokens[:, 1:]]
    assert (gradient[1] < -1e-3).all(), "the alternative becomes more likely"
    assert (gradient[0] > 1e-3).all(), "so the original becomes less likely"
    assert (gradient[2] < -1e-3).all(), "and the retain set more likely"


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=2, max_size=9),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 5),
)
def test_each_forget_row_comes_before_its_own_alternative(sizes, forget_rows, retain_rows, seed):
    """The n-th forget document has tokens 2n + 10, and its alternative 2n + 11; retain documents have others."""
    forget, others = zip(*sizes, strict=True)
    count = len(sizes)
    corpus = corpus_of([*forget, *[5] * 4], np.arange(sum(forget) + 20) < sum(forget))
    corpus.tokens[:] = np.concatenate([np.repeat(2 * np.arange(count) + 10, forget), np.full(20, 9)])
    other = corpus_of([*others])
    other.tokens[:] = np.repeat(2 * np.arange(count) + 11, others)
    rows = min(forget_rows, count)
    sets = [
        Batches(corpus, documents, 9, size, seed, corpus.to_forget, pack=False)
        for documents, size in ((np.arange(count), rows), (np.arange(count, count + 4), retain_rows))
    ]
    both = ForgetAndRetain(*sets, Alternatives(np.arange(count), other))
    for step in range(4):
        batch = both.batch(step)
        kinds = batch.labels[:, 0]
        assert [(kinds == kind).sum() for kind in (0, 1, -1)] == [rows, rows, retain_rows]
        for row in torch.nonzero(kinds == FORGET_LABEL).flatten().tolist():
            own, alternative = batch.rows(slice(row, row + 1)), batch.rows(slice(row + 1, row + 2))
            assert kinds[row + 1] == ALTERNATIVE_LABEL and own.tokens[0, 0] + 1 == alternative.tokens[0, 0]
            number = (int(own.tokens[0, 0]) - 10) // 2
            assert (own.real.sum(), alternative.real.sum()) == (forget[number], others[number])
        of = [targets(batch) for targets in (forget_targets, alternative_targets, retain_targets)]
        assert torch.equal(sum(kind.long() for kind in of), batch.scored.long()), "each target is of one kind"
        assert not of[2][kinds != NO_LABEL].any(), "alternatives are no retain targets"


def test_an_answer_takes_the_place_of_another():
    question = from_row({"question": "Who is it?", "answer": "It is Ada."})
    found = with_answer(question, "I don't know.")
    assert found.text == "Who is it? I don't know." and found.answers == ((11, 24),)
    assert found.messages == (("user", "Who is it?", False), ("assistant", "I don't know.", True))
    prompt = with_answer(from_row({"prompt": "Q: who?\nA:", "completion": " Ada\n"}), "Bo")
    assert prompt.text == "Q: who?\nA: Bo\n" and prompt.answers == ((10, 14),)
    template = from_row({"question": "Who?", "answer": "Ada"}, "<{question}|{answer}>")
    assert with_answer(template, "Bo").text == "<Who?|Bo>"
    chat = [{"role": role, "content": text} for role, text in (("user", "Who?"), ("assistant", "Ada"))]
    assert with_answer(from_row({"messages": chat}), "Bo").messages == (
        ("user", "Who?", False),
        ("assistant", "Bo", True),
    )
    for bad, has in ((Document("A story."), "no"), (from_row({"messages": 2 * chat}), "2")):
        with pytest.raises(ValueError, match=f"it has {has} answers"):
            with_answer(bad, "Bo")


def test_alternatives_have_the_tokens_and_the_scores_of_their_text():
    documents = [from_row(row) for row in QUESTIONS[:5]]
    others = answered("m", documents, [row["answer"] for row in OTHERS[:5]])
    corpus = tokenised_questions(others, TOKENIZER)
    rows = [{"question": a["question"], "answer": b["answer"]} for a, b in zip(QUESTIONS, OTHERS, strict=False)][:5]
    expected = text_corpus(TOKENIZER, rows, OTHERS[5:9], allow_overlap=True)
    end = expected.starts[5]
    for name in ("tokens", "scored"):
        assert np.array_equal(getattr(corpus, name), getattr(expected, name)[:end])
    assert np.array_equal(corpus.starts, expected.starts[:6])


def test_a_pool_is_drawn_by_the_seed_and_answers_for_each_question_are_taken_in_order():
    drawn = chosen_answers("idk-nll", None, DONT_KNOW, 200, seed=0)
    assert set(drawn) == set(DONT_KNOW) and len(set(DONT_KNOW)) == 10
    assert drawn == chosen_answers("idk-nll", None, DONT_KNOW, 200, seed=0)
    assert drawn != chosen_answers("idk-nll", None, DONT_KNOW, 200, seed=1)
    assert chosen_answers("idk-nll", ["No."], DONT_KNOW, 3, 0) == ["No."] * 3
    assert chosen_answers("alt-po", ["a", "b", "c"], (), 3, 0) == ["a", "b", "c"]


CALL = {"method": "idk-nll", "steps": 1, **SMALL}
REFUSED = [
    ({"forget": FORGET}, "the method idk-nll needs forget documents that are a question .*, but it has no answers: '"),
    ({"method": "alt-po"}, "the method alt-po needs alternatives, one answer for each of [0-9]+ .*, got none"),
    ({"method": "alt-po", "alternatives": ["a", "b"]}, "one answer for each of [0-9]+ forget documents, got 2"),
    ({"method": "npo", "alternatives": ["a"]}, "the method npo needs no alternative answers: leave out alternatives"),
    ({"alternatives": "No."}, "alternatives must be a list of answers, got one string: 'No.'"),
    ({"alternatives": []}, "alternatives must have one or more answers, got none"),
    ({"alternatives": ["No.", " "]}, "alternatives must be texts that are not blank, got ' '"),
    ({"accumulate": 3}, "batch_size=4 must be divisible by the 3 parts of a batch .* stay together"),
    ({"length": 5}, "length=5 is too small: a question with its answer, or an alternative answer, has [0-9]+ tokens"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_mistakes_are_said_in_one_line(changed, message, model, tokenizer):  # noqa: F811
    with pytest.raises(UserError, match=message) as error:
        unlearn(model, tokenizer, **{"forget": QUESTIONS, "retain": OTHERS, **CALL, **changed})
    assert "\n" not in str(error.value)


def test_a_corpus_has_no_questions(model, tokenizer):  # noqa: F811
    corpus = text_corpus(tokenizer, QUESTIONS, OTHERS, allow_overlap=True)
    with pytest.raises(UserError, match="needs the questions of the forget set, and a Corpus has tokens alone"):
        unlearn(model, tokenizer, corpus, **CALL)
    with pytest.raises(UserError, match="batch_size=6 must be divisible by the 4 parts"):
        check_pairs("--batch-size", 6, 4)


def test_rows_become_long_enough_for_the_alternatives(model, tokenizer):  # noqa: F811
    """Without a length, as for documents. Answers of another number are a pool."""
    longer = [" ".join(row["answer"] for row in OTHERS[:3])]
    options = CALL | {"length": None, "allow_overlap": True, "alternatives": longer}
    found = unlearn(model, tokenizer, QUESTIONS, OTHERS, **options)
    assert all(parameter.isfinite().all() for parameter in found.parameters())


def test_sam_needs_what_its_method_needs():
    assert Sam(IdkDpo()).alternatives == DONT_KNOW and Sam().alternatives is None
    for kind in (IdkDpo, AltPo):
        with pytest.raises(ValueError, match=f"beta of {kind.__name__} must be more than 0, got 0"):
            kind(beta=0.0)


def test_as_many_alternatives_as_forget_documents():
    with pytest.raises(ValueError, match="3 forget documents need as many alternatives, got 2"):
        Alternatives(np.arange(3), corpus_of([4, 5]))
