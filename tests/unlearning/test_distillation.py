"""Distillation of whole models: to the stop rule, killed, and from a cache; on two processes in tests/lm."""

import copy
import math
from contextlib import suppress

import pytest
import torch

from routed_rl.lm.training import Training
from routed_rl.runs import read_json
from routed_rl.unlearning import DistillationObjective, StopRule, cache_teacher, distil
from tests.lm.cases import Stopped, log_often, make_batches, make_corpus, make_llama, open_run
from tests.lm.test_resume import contents
from tests.lm.tiny_models import tiny_model
from tests.unlearning.distillations import STEPS, distil_again, make_teacher
from tests.unlearning.small_models import VOCABULARY, assert_same, make_batch

# --- the stop rule ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "student", "teacher", "reached"),
    [
        (StopRule(0.05, True, True), 0.76, 0.8, True),  # 95 % of an accuracy
        (StopRule(0.05, True, True), 0.75, 0.8, False),
        (StopRule(0.05, False, True), 0.7501, 0.8, True),  # five percentage points
        (StopRule(0.05, False, True), 0.75, 0.8, False),
        (StopRule(0.25, False, True), 0.5, 0.75, False),  # a difference equal to the margin is not less
        (StopRule(0.05, True), 3.14, 3.0, True),  # 5 % of a loss
        (StopRule(0.05, True), 3.16, 3.0, False),
        (StopRule(0.25, True), 2.5, 2.0, False),
        (StopRule(0.05, False), 3.04, 3.0, True),
        (StopRule(0.05, False), 3.06, 3.0, False),
        *((StopRule(0.0, relative, higher), 1.0, 1.0, True) for relative in (0, 1) for higher in (0, 1)),
        *((StopRule(0.0, relative, True), 1.1, 1.0, True) for relative in (0, 1)),
        *((StopRule(0.0, relative, False), 0.9, 1.0, True) for relative in (0, 1)),
        (StopRule(0.05, False, True), -1.0, -0.99, True),  # a difference may be of any numbers
    ],
)
def test_the_rule(rule, student, teacher, reached):
    assert rule.reached(student, teacher) == reached


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: StopRule().reached(math.nan, 1.0), FloatingPointError, "the student's retain performance is nan"),
        (lambda: StopRule().reached(1.0, math.inf), FloatingPointError, "the teacher's retain performance is inf"),
        (lambda: StopRule().reached(1.0, 0.0), ValueError, "a share of the teacher's 0.0 has no meaning"),
        (
            lambda: StopRule(within=-0.1),
            ValueError,
            "least must be 0 or more and every 1 or more, got -0.1, 0, 20",
        ),
        (lambda: StopRule(every=0), ValueError, "got 0.05, 0, 0"),
        (lambda: StopRule(least=-1), ValueError, "got 0.05, -1, 20"),
        (lambda: StopRule(within=math.nan), ValueError, "got nan, 0, 20"),
    ],
)
def test_rules_that_say_nothing(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- distillation -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """Return a teacher, its batches, and a distillation of it that was never interrupted."""
    folder = tmp_path_factory.mktemp("distillation")
    with pytest.MonkeyPatch.context() as patch:
        log_often(patch)
        batches = make_batches(make_corpus(folder / "corpus"))
        teacher = make_teacher(batches)
        with open_run(folder / "unbroken") as run:
            distilled, weights = distil_again(teacher, batches, run=run)
    return folder, teacher, batches, distilled, weights


@pytest.fixture(autouse=True)
def often(monkeypatch):
    log_often(monkeypatch)


def test_it_goes_on_until_the_student_does_about_as_well(taught):
    folder, teacher, _, distilled, _ = taught
    *before, (last, reached) = distilled.student.items()
    assert [step for step, _ in before] == list(range(0, last, 3)) and last == distilled.steps < STEPS
    assert all(loss / distilled.teacher - 1 >= 0.25 for _, loss in before) and distilled.reached
    assert reached / distilled.teacher - 1 < 0.25
    saved = read_json(folder / "unbroken" / "retain.json")
    assert saved == {"teacher": distilled.teacher, "student": [[*pair] for pair in distilled.student.items()]}
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.training


@pytest.mark.parametrize("killed", [(2,), (11,), (8, 13), (14,)])
def test_killed_and_resumed_to_the_same_bytes(taught, tmp_path, killed):
    """A run is killed before a checkpoint, after one, twice, or in the step before the last. A finished run stays
    finished.
    """
    folder, teacher, batches, distilled, weights = taught

    def go_on(die_at=None):
        def on_step(step):
            if step == die_at:
                raise Stopped

        with open_run(tmp_path / "run") as run:
            return distil_again(teacher, batches, run=run, on_step=on_step)

    for step in killed:
        with suppress(Stopped):
            go_on(step)
    for _ in range(2):
        again, their_weights = go_on()
        assert again == distilled
        assert all(torch.equal(their_weights[name], weight) for name, weight in weights.items())
        assert contents(tmp_path / "run") == contents(folder / "unbroken")


def test_without_a_rule_all_steps_are_done(taught):
    _, teacher, batches, _, _ = taught
    student = make_llama()
    before = copy.deepcopy(teacher.state_dict())
    distilled = distil(student, teacher, batches, Training(steps=4, warmup=0))
    assert (distilled.steps, distilled.reached, distilled.teacher, distilled.student) == (4, False, None, {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


def test_a_rule_that_is_not_met_ends_at_the_last_step_and_one_that_is_met_at_once_does_nothing(taught):
    _, teacher, batches, _, _ = taught
    model = lambda: copy.deepcopy(teacher).requires_grad_(True)  # noqa: E731
    values = iter([1.0, 0.2, 0.3, 0.3])
    rule = StopRule(higher_is_better=True, every=3)
    distilled = distil(model(), teacher, batches, Training(steps=5), lambda model: next(values), rule)
    assert (distilled.steps, distilled.reached, distilled.student) == (5, False, {0: 0.2, 3: 0.3, 5: 0.3})
    student = model()
    distilled = distil(student, teacher, batches, Training(steps=5), lambda model: 1.0, rule)
    assert (distilled.steps, distilled.reached, distilled.student) == (0, True, {0: 1.0})
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters(), strict=True))


def test_a_cached_teacher_teaches_the_same(taught, tmp_path):
    _, teacher, batches, _, _ = taught
    cache = cache_teacher(teacher, batches, 4, VOCABULARY, tmp_path / "cache")
    weights = []
    for of in (None, cache):
        student = make_llama()
        distil(student, teacher, batches, Training(steps=4, warmup=0), cache=of)
        weights.append(student.state_dict())
    assert_same(weights[0], weights[1], 1e-4)


def test_bad_input():
    student, teacher, other = tiny_model("llama"), tiny_model("llama", 1), tiny_model("llama", vocab_size=200)
    message = f"the student has a vocabulary of 200 tokens, the teacher of {VOCABULARY}: both need the same tokenizer"
    for call in (
        lambda: distil(other, teacher, None, Training()),
        lambda: DistillationObjective(teacher)(other, make_batch()),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="student and teacher share parameters: distil into a copy"):
        distil(teacher, teacher, None, Training())
    with pytest.raises(ValueError, match="nothing in the student requires gradients"):
        distil(student.requires_grad_(False), teacher, None, Training())
    with pytest.raises(ValueError, match="got -1 and 128 positions"):
        DistillationObjective(teacher, hidden_weight=-1)
    with pytest.raises(ValueError, match="and 0 positions"):
        DistillationObjective(teacher, chunk=0)
    wider = tiny_model("llama", hidden_size=32)
    with pytest.raises(ValueError, match="the student has 2 blocks of 32 dimensions, the teacher 2 of 16"):
        DistillationObjective(teacher, 1.0)(wider, make_batch())


def test_a_measurement_that_is_no_number_ends_it(taught):
    _, teacher, batches, _, _ = taught
    values = iter([1.0, math.nan])
    with pytest.raises(FloatingPointError, match="the student's retain performance is nan"):
        distil(make_llama(), teacher, batches, Training(steps=5), lambda model: next(values))


def test_streams_are_not_cached(taught, tmp_path):
    _, teacher, batches, _, _ = taught
    cache = cache_teacher(teacher, batches, 1, 2, tmp_path / "cache")
    with pytest.raises(ValueError, match="a cache holds no residual streams"):
        DistillationObjective(cache, 1.0)
