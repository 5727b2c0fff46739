"""A teacher's outputs in a cache: as good as the teacher where all tokens are kept, and found wherever rows come."""

from dataclasses import replace

import pytest
import torch

from routed_rl.lm.batches import Batch
from routed_rl.unlearning import DistillationObjective, cache_teacher
from routed_rl.unlearning.teacher_cache import TeacherCache
from tests.lm.cases import Stopped
from tests.unlearning.small_models import MODELS, VOCABULARY, assert_same, gradients


def as_batch(tokens):
    return Batch(tokens, torch.full_like(tokens, -1), torch.ones(len(tokens), 8, dtype=torch.bool))


class Rows:
    """As many batches of random rows as one likes."""

    def batch(self, step):
        tokens = torch.randint(0, 96, (4, 9), generator=torch.Generator().manual_seed(step))
        return as_batch(tokens)


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
    """And the teacher is run once: a cache that is there is opened as it is."""
    teacher = MODELS["tiny", 1]
    cache = cache_teacher(teacher, Rows(), 3, 4, tmp_path / "cache")
    again = cache_teacher(None, Rows(), 3, 4, tmp_path / "cache")
    assert again.vocabulary == cache.vocabulary == VOCABULARY
    mixed = torch.cat([Rows().batch(2).tokens[3:], Rows().batch(0).tokens[1:2]])
    log_q = MODELS["gemma2", 0](input_ids=mixed).logits[:, :-1].log_softmax(-1).flatten(0, 1).detach()
    log_p = teacher(input_ids=mixed).logits[:, :-1].log_softmax(-1).flatten(0, 1).detach()
    found = again.target(as_batch(mixed))(slice(0, 16), log_q)
    top, which = log_p.topk(4)
    torch.testing.assert_close(found.gather(-1, which), top, rtol=0, atol=1e-5)
    torch.testing.assert_close(found.logsumexp(-1), torch.zeros(16, dtype=torch.float64), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="1 of 2 rows are not in the cache, which has 12: cache the teacher on every"):
        again.target(as_batch(torch.cat([mixed[:1], mixed[1:].flip(1)])))
    apart = replace(as_batch(mixed), examples=(torch.arange(9) // 5).expand(2, 9))
    with pytest.raises(ValueError, match="2 of 2 rows"):
        again.target(apart)


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
