"""A small distillation: a model that has learned from generated stories is distilled into a noised copy of itself."""

import copy
from collections.abc import Callable

from torch import Tensor, nn

from routed_rl.lm.batches import Batches, WholeDocuments
from routed_rl.lm.losses import evaluate
from routed_rl.lm.processes import distribute, gathered_state
from routed_rl.lm.training import Training, train
from routed_rl.runs import RunDirectory
from routed_rl.unlearning import Distilled, StopRule, distil, shrink_and_perturb
from tests.lm.cases import SEED, make_llama

STEPS = 20
RULE = StopRule(within=0.25, every=3)
"""The student below meets this rule before all steps are done."""


def make_teacher(batches: Batches) -> nn.Module:
    """Return a model that has learned a little from these batches."""
    teacher = make_llama(tie_word_embeddings=True)
    train(teacher, batches, Training(steps=30, learning_rate=2e-2, warmup=5))
    return teacher


def distil_again(
    teacher: nn.Module,
    batches: Batches,
    shard: bool = False,
    run: RunDirectory | None = None,
    on_step: Callable[[int], None] = lambda step: None,
    rule: StopRule = RULE,
    hidden_weight: float = 0.5,
) -> tuple[Distilled, dict[str, Tensor]]:
    """Return the result of the distillation, and the student's weights on the first process."""
    student = copy.deepcopy(teacher).requires_grad_(True)
    shrink_and_perturb(student, 0.7, 0.1, seed=0)
    student = distribute(student, shard)
    held_out = WholeDocuments(batches.corpus, batches.corpus.documents("validation")[:10])
    distilled = distil(
        student,
        teacher,
        batches,
        Training(steps=STEPS, learning_rate=2e-2, warmup=3, accumulate=2),
        lambda model: evaluate(model, held_out).mean(),
        rule,
        hidden_weight=hidden_weight,
        seed=SEED,
        run=run,
        on_step=on_step,
    )
    return distilled, gathered_state(student)
