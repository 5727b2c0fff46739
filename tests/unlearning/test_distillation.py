"""Distillation of whole models: compared with the formula, up to the stop rule, after kills, and on two processes."""

import copy
import math
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.models import blocks, build_model
from routed_rl.lm.stories import stories_tokenizer
from routed_rl.lm.training import Training
from routed_rl.runs import read_checkpoint, read_json, write_checkpoint
from routed_rl.unlearning import DistillationObjective, StopRule, cache_teacher, distil
from routed_rl.unlearning.distillation import last_hidden
from routed_rl.unlearning.teacher_cache import TeacherCache
from tests.lm.cases import Stopped, log_often, make_batches, make_corpus, make_llama, open_run
from tests.lm.test_losses import Bigram
from tests.lm.test_resume import contents
from tests.lm.tiny_models import tiny_model
from tests.unlearning.distillations import STEPS, distil_again, make_teacher

ROOT = Path(__file__).parents[2]
VOCABULARY = len(stories_tokenizer())


def make_model(kind, seed=0):
    """Return a model in double precision.

    "tiny" is a preset, "gemma2" has tied embeddings and a small cap on its logits, "phi" has a head with a bias.
    "cohere" scales its logits after the head, so it cannot be divided into body and head.
    """
    if kind == "tiny":
        return build_model("tiny", stories_tokenizer(), seed).double()
    return tiny_model(kind, seed, **({"final_logit_softcapping": 1.5} if kind == "gemma2" else {})).double()


MODELS = {(kind, seed): make_model(kind, seed) for kind in ("tiny", "gemma2", "phi", "cohere") for seed in (0, 1)}
DIVIDED = ("tiny", "gemma2", "phi")


def make_batch(scored=None, rows=2, length=9):
    tokens = torch.randint(0, 96, (rows, length), generator=torch.Generator().manual_seed(0))
    scored = torch.ones(rows, length - 1, dtype=torch.bool) if scored is None else scored
    return Batch(tokens, torch.full_like(tokens, -1), scored)


def gradients(model, loss):
    """Return the loss and every parameter's gradient, and clear the gradients."""
    loss.backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    return {"loss": loss.detach(), **found}


def written_out(student, teacher, batch):
    of_teacher = teacher(input_ids=batch.tokens).logits[:, :-1].detach()
    of_student = student(input_ids=batch.tokens).logits[:, :-1]
    gap = of_teacher.log_softmax(-1) - of_student.log_softmax(-1)
    return (of_teacher.softmax(-1) * gap).sum(-1)[batch.scored].sum()


def assert_same(found, expected, tolerance=1e-6):
    """Compare with a tolerance relative to the largest number: models compute some parts in single precision always."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        most = tolerance * max(1.0, value.abs().max().item())
        torch.testing.assert_close(found[name], value, rtol=0, atol=most, msg=lambda text, name=name: name + text)


@settings(deadline=None, max_examples=30)
@given(
    kind=st.sampled_from(["tiny", "gemma2", "phi", "cohere"]),
    of_teacher=st.sampled_from(["tiny", "gemma2", "phi", "cohere"]),
    chunk=st.integers(1, 20),
    scored=st.lists(st.booleans(), min_size=16, max_size=16),
)
def test_it_is_the_divergence_of_the_models_logits(kind, of_teacher, chunk, scored):
    batch = make_batch(torch.tensor(scored).view(2, 8))
    student, teacher = MODELS[kind, 0], MODELS[of_teacher, 1]
    found = gradients(student, DistillationObjective(teacher, chunk=chunk)(student, batch))
    assert_same(found, gradients(student, written_out(student, teacher, batch)))
    assert any(scored) == bool(found["loss"] > 0)


@pytest.mark.parametrize("kind", ["tiny", "gemma2", "phi", "cohere"])
def test_a_model_has_nothing_to_learn_from_itself(kind):
    model = MODELS[kind, 0]
    found = gradients(model, DistillationObjective(copy.deepcopy(model))(model, make_batch()))
    assert all((value == 0).all() for value in found.values())


def lengths_of_logits(model, calls):
    """Return a list that collects for how many positions a model computes logits, in each call."""
    lengths = []
    handle = model.register_forward_hook(lambda module, args, output: lengths.append(output.logits.shape[1]))
    for call in calls:
        call()
    handle.remove()
    return lengths


@pytest.mark.parametrize(("kind", "expected"), [*((kind, [1, 1]) for kind in DIVIDED), ("cohere", [1, 9, 9])])
def test_logits_of_all_positions_are_made_only_where_they_must_be(kind, expected):
    batch, student, teacher = make_batch(), make_model(kind), MODELS[kind, 1]
    objective = DistillationObjective(teacher)
    assert lengths_of_logits(student, 2 * [lambda: objective(student, batch)]) == expected
    objective = DistillationObjective(teacher)
    assert lengths_of_logits(teacher, 2 * [lambda: objective(student, batch)]) == expected


@pytest.mark.parametrize("kind", DIVIDED)
def test_the_head_is_found_under_autocast_too(kind):
    student, teacher = (copy.deepcopy(MODELS[kind, seed]).float() for seed in (0, 1))
    objective, batch, found = DistillationObjective(teacher), make_batch(), {}

    def once():
        with torch.autocast("cpu", torch.bfloat16):
            loss = objective(student, batch)
        found.update(gradients(student, loss))

    assert lengths_of_logits(student, [once]) == [1]
    expected = gradients(student, written_out(student, teacher, batch))
    assert found["loss"].item() == pytest.approx(expected["loss"].item(), rel=0.02)
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - value).norm() <= 0.2 * value.norm(), name


class TwiceLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def by_subclass(model):
    head = model.lm_head
    model.lm_head = TwiceLinear(head.in_features, head.out_features, bias=head.bias is not None).double()
    model.lm_head.load_state_dict(head.state_dict())


def by_hook(model):
    model.lm_head.register_forward_hook(lambda module, args, output: 2 * output)


def by_pre_hook(model):
    model.lm_head.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def by_forward(model):
    forward = model.lm_head.forward
    model.lm_head.forward = lambda x: 2 * forward(x)


@pytest.mark.parametrize("change", [by_subclass, by_hook, by_pre_hook, by_forward])
def test_a_head_that_is_changed_afterwards_is_not_taken_for_a_plain_one(change):
    batch, teacher = make_batch(), MODELS["tiny", 1]
    student = make_model("tiny")
    objective = DistillationObjective(teacher)
    objective(student, batch)
    change(student)
    assert last_hidden(student, batch.tokens) is None
    assert_same(gradients(student, objective(student, batch)), gradients(student, written_out(student, teacher, batch)))


def test_logits_that_are_0_prove_nothing():
    model = make_model("cohere")
    with torch.no_grad():
        model.model.norm.weight.zero_()
    assert last_hidden(model, make_batch().tokens) is None


def test_models_that_are_not_of_transformers():
    student, teacher = Bigram(), Bigram()
    teacher.table.weight.data = teacher.table.weight.data.flip(0)
    batch = make_batch()
    batch = Batch(batch.tokens % 8, batch.labels, batch.scored)
    loss = DistillationObjective(teacher)(student, batch)
    p, q = teacher.table.weight.softmax(-1), (2 * student.table.weight).softmax(-1)  # twice as large in training
    expected = (p * (p.log() - q.log())).sum(-1)[batch.tokens[:, :-1]].sum()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize(("kind", "weight"), [("tiny", 0.5), ("gemma2", 10.0), ("cohere", 10.0)])
def test_residual_streams_are_compared_after_each_block(kind, weight):
    scored = torch.arange(16).view(2, 8) % 3 > 0
    batch, student, teacher = make_batch(scored), MODELS[kind, 0], MODELS[kind, 1]

    def streams(model):
        states = model(input_ids=batch.tokens, output_hidden_states=True).hidden_states[1:]
        last = []
        handle = model.get_submodule(blocks(model)[-1]).register_forward_hook(
            lambda module, args, output: last.append(output[0] if isinstance(output, tuple) else output)
        )
        model(input_ids=batch.tokens)
        handle.remove()
        return [*states[:-1], last[0]]  # the last hidden state of transformers is after the last norm

    pairs = list(zip(streams(student), streams(teacher), strict=True))
    distances = [((x - y.detach()) ** 2).sum(-1)[:, :-1][scored].sum() / x.shape[-1] for x, y in pairs]
    expected = written_out(student, teacher, batch) + weight * sum(distances) / len(distances)
    found = DistillationObjective(teacher, weight)(student, batch)
    assert_same(gradients(student, found), gradients(student, expected))


# --- cached teachers ----------------------------------------------------------------------------


class Rows:
    """Batches of random rows, without end."""

    def batch(self, step):
        tokens = torch.randint(0, 96, (4, 9), generator=torch.Generator().manual_seed(step))
        return Batch(tokens, torch.full_like(tokens, -1), torch.ones(4, 8, dtype=torch.bool))


@pytest.mark.parametrize("kind", ["tiny", "cohere"])
def test_a_cache_of_all_tokens_is_the_teacher(tmp_path, kind):
    student, teacher = MODELS["gemma2", 0], MODELS[kind, 1]
    cache = cache_teacher(teacher, Rows(), 2, VOCABULARY, tmp_path / "cache")
    batch = Rows().batch(1).rows(slice(1, 3))
    batch.scored[0, 3] = False
    found = gradients(student, DistillationObjective(cache)(student, batch))
    assert_same(found, gradients(student, DistillationObjective(teacher)(student, batch)), 1e-5)


def test_a_cache_of_a_few_tokens_is_what_is_known_of_the_teacher(tmp_path):
    student, teacher = MODELS["gemma2", 0], MODELS["tiny", 1]
    losses = []
    for k in (1, 5, VOCABULARY):
        cache = cache_teacher(teacher, Rows(), 1, k, tmp_path / f"{k}")
        losses.append(DistillationObjective(cache)(student, Rows().batch(0)).item())
    assert 0 < losses[0] < losses[1] < losses[2]
    itself = cache_teacher(student, Rows(), 1, 5, tmp_path / "itself")
    assert DistillationObjective(itself)(student, Rows().batch(0)).item() == pytest.approx(0, abs=1e-5)


def test_rows_are_found_wherever_they_come(tmp_path):
    """The teacher is run once: a cache that is already there is opened as it is."""
    teacher = MODELS["tiny", 1]
    cache = cache_teacher(teacher, Rows(), 3, 4, tmp_path / "cache")
    again = cache_teacher(None, Rows(), 3, 4, tmp_path / "cache")
    assert again.vocabulary == cache.vocabulary == VOCABULARY
    mixed = torch.cat([Rows().batch(2).tokens[3:], Rows().batch(0).tokens[1:2]])
    scored = torch.ones(2, 8, dtype=torch.bool)
    log_q = MODELS["gemma2", 0](input_ids=mixed).logits[:, :-1].log_softmax(-1).flatten(0, 1).detach()
    log_p = teacher(input_ids=mixed).logits[:, :-1].log_softmax(-1).flatten(0, 1).detach()
    found = again.target(mixed, scored)(slice(0, 16), log_q)
    top, which = log_p.topk(4)
    torch.testing.assert_close(found.gather(-1, which), top, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(16, dtype=torch.float64), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="1 of 2 rows are not in the cache, which has 12: cache the teacher on every"):
        again.target(torch.cat([mixed[:1], mixed[1:].flip(1)]), scored)


def test_caches_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="holds no cache of a teacher"):
        TeacherCache(tmp_path)
    for steps, k in ((0, 4), (1, 0), (1, VOCABULARY + 1)):
        with pytest.raises(ValueError, match=f"got {steps} steps and k {k}"):
            cache_teacher(MODELS["tiny", 1], Rows(), steps, k, tmp_path / "cache")

    class Broken(Rows):
        def batch(self, step):
            if step:
                raise Stopped
            return super().batch(step)

    with pytest.raises(Stopped):
        cache_teacher(MODELS["tiny", 1], Broken(), 2, 4, tmp_path / "cache")
    assert not list(tmp_path.iterdir()), "what was interrupted leaves nothing"


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
        (lambda: StopRule(within=-0.1), ValueError, "within must be 0 or more and every 1 or more, got -0.1 and 20"),
        (lambda: StopRule(every=0), ValueError, "got 0.05 and 0"),
        (lambda: StopRule(within=math.nan), ValueError, "got nan and 20"),
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


def test_two_processes_are_one(taught):
    """Two processes, with replicas and with a sharded model, give what one process gives."""
    folder, teacher, _, distilled, weights = taught
    write_checkpoint(folder / "teacher", teacher.state_dict(), {})
    command = ["-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "tests.unlearning.two_processes"]
    subprocess.run([sys.executable, *command, folder], check=True, cwd=ROOT)
    for layout in ("replicated", "sharded"):
        together = read_checkpoint(folder / f"{layout}, weights")
        assert [step for step, _ in together.meta["student"]] == list(distilled.student)
        for (_, loss), expected in zip(together.meta["student"], distilled.student.values(), strict=True):
            assert loss == pytest.approx(expected, abs=1e-6)
        assert_same(together.tensors, weights, 1e-8)
