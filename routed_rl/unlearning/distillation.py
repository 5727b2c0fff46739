"""Distillation: a student learns a teacher's output distribution, until its retain performance is good enough.

``B`` rows, ``T`` tokens a row, ``D`` residual dimensions. UNDO (Lee et al. 2025) distils a suppressed model into a
noised copy of itself (:func:`~routed_rl.unlearning.shrink_and_perturb`). With another student or teacher, the same call
distils into a random initialisation, or matches an oracle.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import Batch
from routed_rl.lm.processes import agreed, is_divided, undistributed
from routed_rl.lm.streams import outputs
from routed_rl.lm.structure import blocks
from routed_rl.lm.training import Source, Training, train
from routed_rl.runs import RunDirectory, read_json, write_json
from routed_rl.unlearning.divergence import CHUNK, Head, divergence, teacher_target
from routed_rl.unlearning.teacher_cache import TeacherCache

RETAIN = "retain.json"
"""The file of a run with the retain performance that was measured during distillation."""


class DistillationObjective:
    """``Σ KL(p_teacher; p_student)`` over scored targets, for :func:`~routed_rl.lm.train` (UNDO; Hinton et al. 2015).

    The divergence is over the whole vocabulary, at temperature 1 and without labels.

    Args:
        teacher: a model, whole on every process, which is frozen from now on; or a cache of its outputs.
        hidden_weight: weight of the squared difference of residual streams at each scored target. It is a mean over
            dimensions and over the streams after each block (UNDO's code: 10 in a variant, else 0).
        chunk: positions whose logits are in memory at a time.

    Raises:
        ValueError: for arguments out of range. When called: for models with different vocabularies or, if residual
            streams are compared, with different widths or depths.
    """

    def __init__(self, teacher: nn.Module | TeacherCache, hidden_weight: float = 0.0, chunk: int = CHUNK) -> None:
        if not 0 <= hidden_weight < math.inf or chunk < 1:
            raise ValueError(
                f"hidden_weight must be 0 or more and chunk 1 or more, got {hidden_weight} and {chunk} positions"
            )
        if isinstance(teacher, TeacherCache):
            if hidden_weight:
                raise ValueError("hidden_weight needs a teacher that is a model: a cache holds no residual streams")
        else:
            teacher.requires_grad_(False).eval()
        self.teacher, self.hidden_weight, self._chunk = teacher, hidden_weight, chunk
        self._splits: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def expect_heads(self, *models: nn.Module) -> None:
        """Take it that these models' logits are what their heads make of hidden states, without comparing both."""
        self._splits.update(dict.fromkeys(models, True))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        check_vocabulary(model, self.teacher)
        hidden, head, streams = self._run(model, batch)
        if isinstance(self.teacher, TeacherCache):
            target = self.teacher.target(batch)
        else:
            with torch.no_grad():
                of_teacher, its_head, its_streams = self._run(self.teacher.to(hidden.device), batch)
            target = teacher_target(of_teacher[:, :-1][batch.scored], its_head)
        loss = divergence(hidden[:, :-1][batch.scored], head, target, self._chunk)
        if self.hidden_weight:
            loss = loss + self.hidden_weight * _distance(streams, its_streams)[:, :-1][batch.scored].sum()
        return loss

    def _run(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Head, list[Tensor]]:
        """Return ``(B, T, D)`` last hidden states, the head for them, and the residual streams after each block."""
        inner = undistributed(model)
        watched = [inner.get_submodule(name) for name in blocks(inner)] if self.hidden_weight else []
        with outputs(*watched) as streams:
            found = None
            if self._splits.get(inner, True):
                found = last_hidden(model, batch, check=inner not in self._splits)
                self._splits[inner] = found is not None
            if found is None:
                streams.clear()
                found = model(**batch.inputs).logits, Head()
        return *found, streams


def last_hidden(model: nn.Module, batch: Batch, check: bool = True) -> tuple[Tensor, Head] | None:
    """Return ``(B, T, D)``, the hidden states before a model's logits, and the head that turns them into logits.

    Return None if the logits may be made in another way. This is so if the model is not of transformers, its head is
    not a plain linear layer, or its logits differ from the head's.

    The whole model is called, so it may be distributed. It makes only the last logits of each row.

    Args:
        check: whether to compare these last logits with the head's.
    """
    from transformers import PreTrainedModel  # imports much

    inner = undistributed(model)
    if not isinstance(inner, PreTrainedModel) or "logits_to_keep" not in inspect.signature(inner.forward).parameters:
        return None
    head = inner.get_output_embeddings()
    if not _is_plain_linear(head):
        return None
    with outputs(inner.get_decoder()) as seen:
        last = model(**batch.inputs, logits_to_keep=1).logits
    if len(seen) != 1 or seen[0].shape[-1] != head.in_features or is_divided(head.weight):
        return None  # after a forward pass, the head of a sharded model may be whole or in parts
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    found = seen[0], Head(head.weight, head.bias, cap)
    if check:
        with torch.no_grad():
            again = found[1].as_computed(last.device.type)(seen[0][:, -1:])
        difference, size = (logits.abs().max() for logits in (again - last, last))
        if not (size > 0 and difference <= 1e-3 * size):  # logits that are all 0 or not finite prove nothing
            return None
    return found


def _is_plain_linear(module: Any) -> bool:
    """Return whether a module is torch's linear layer, without hooks or other changes such as a router makes."""
    # torch has no public way to ask for hooks.
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(module) is nn.Linear and "forward" not in vars(module) and not any(vars(module)[name] for name in hooks)


def _distance(streams: list[Tensor], others: list[Tensor]) -> Tensor:
    """Return ``(B, T)``: squared differences, as a mean over dimensions and streams."""
    sizes = [(len(of_model), of_model[0].shape[-1]) for of_model in (streams, others)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            "residual streams can be compared between models of the same depth and width: the student has {} blocks of "
            "{} dimensions, the teacher {} of {}".format(*sizes[0], *sizes[1])
        )
    pairs = zip(streams, others, strict=True)
    return torch.stack([(stream - other).square().mean(dim=-1) for stream, other in pairs]).mean(dim=0)


def check_vocabulary(student: nn.Module, teacher: nn.Module | TeacherCache) -> None:
    """Raise ValueError if student and teacher have vocabularies of different sizes."""
    size = _vocabulary(student)
    other = teacher.vocabulary if isinstance(teacher, TeacherCache) else _vocabulary(teacher)
    if size != other:
        raise ValueError(
            f"the student has a vocabulary of {size} tokens, the teacher of {other}: both need the same tokenizer"
        )


def _vocabulary(model: nn.Module) -> int:
    return int(undistributed(model).get_input_embeddings().weight.shape[0])  # type: ignore[operator]


@dataclass(frozen=True)
class StopRule:
    """When a student's retain performance is good enough: "recover 95 % of the teacher's performance" (UNDO).

    >>> StopRule(0.05, higher_is_better=True).reached(student=0.95, teacher=1.0)
    True
    """

    within: float = 0.05
    """how far the student may be below the teacher's performance"""
    relative: bool = True
    """True: ``within`` is a share of the teacher's number; False: it is in the number's own unit"""
    higher_is_better: bool = False
    """True for an accuracy, False for a loss"""
    every: int = 20
    """steps between measurements; there is also one before the first step and one after the last"""
    least: int = 0
    """steps before which training does not stop; the rule says nothing about what noise has left in the weights"""

    def __post_init__(self) -> None:
        if not 0 <= self.within < math.inf or self.every < 1 or self.least < 0:
            raise ValueError(
                f"within and least must be 0 or more and every 1 or more, got {self.within}, {self.least}, {self.every}"
            )

    def reached(self, student: float, teacher: float) -> bool:
        """Return whether to stop. A student that is better than its teacher always stops.

        Raises:
            FloatingPointError: if one of the numbers is not finite.
            ValueError: for a relative rule and a teacher's number that is not above 0.
        """
        for name, value in (("student", student), ("teacher", teacher)):
            if not math.isfinite(value):
                raise FloatingPointError(f"the {name}'s retain performance is {value}, not a finite number")
        if self.relative and teacher <= 0:
            raise ValueError(f"a share of the teacher's {teacher} has no meaning: use StopRule(relative=False)")
        if self.relative and self.higher_is_better:
            return student >= (1 - self.within) * teacher
        # Here the public code requires less than the margin, not at most the margin.
        short = teacher - student if self.higher_is_better else student - teacher
        return short <= 0 or short < (self.within * teacher if self.relative else self.within)


@dataclass(frozen=True)
class Distilled:
    """The result of a distillation.

    Attributes:
        steps: gradient steps that were done.
        reached: whether the stop rule was met; False without a rule.
        teacher: the teacher's retain performance; None without a rule.
        student: the student's retain performance, by step.
        early: whether the rule was met before the least number of steps, or before the first step: the noise cost
            little, and distillation changed little.
    """

    steps: int
    reached: bool
    teacher: float | None
    student: dict[int, float]
    early: bool = False


def distil(
    student: nn.Module,
    teacher: nn.Module,
    source: Source,
    training: Training,
    measure: Callable[[nn.Module], float] | None = None,
    rule: StopRule = StopRule(),
    *,
    cache: TeacherCache | None = None,
    hidden_weight: float = 0.0,
    seed: int = 0,
    run: RunDirectory | None = None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Distilled:
    """Train a student on a teacher's output distribution, in place, until its retain performance is about as good.

    The learning rate decays over ``training.steps``, the largest number of steps. If the stop rule ends training
    earlier, the rate is still high there (as in UNDO's code). A killed run resumes as in :func:`~routed_rl.lm.train`. A
    run that the rule has stopped stays stopped.

    Args:
        student: as :func:`~routed_rl.lm.distribute` returns it. Parameters that require gradients learn. After RMU
            these are few, until ``requires_grad_(True)``.
        teacher: on the same device, whole on every process. It is frozen.
        source: unlabelled text of all kinds, with the forget set. On other text the student is merely undefined.
        training: the settings.
        measure: returns a model's retain performance. None: no stop rule, so all steps are done.
        rule: when to stop.
        cache: the teacher's outputs on every step's batch. None: the teacher is run in every step.
        hidden_weight: as in :class:`DistillationObjective`.
        run: on the first process only. Its file ``RETAIN`` gets the measurements.

    Raises:
        FloatingPointError, ValueError: as :func:`~routed_rl.lm.train`, :class:`DistillationObjective` and
            :meth:`StopRule.reached`. Also if nothing in the student requires gradients, or student and teacher share
            parameters.
    """
    check_vocabulary(student, teacher)
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ValueError("student and teacher share parameters: distil into a copy")
    objective = DistillationObjective(teacher if cache is None else cache, hidden_weight)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError("nothing in the student requires gradients: call requires_grad_(True) on what is to learn")
    aim = None if measure is None else agreed(float(measure(teacher)))
    history: dict[int, float] = {}
    if run is not None and (run.path / RETAIN).exists():
        history = dict(read_json(run.path / RETAIN)["student"])
    reached = False

    def stop(done: int) -> bool:
        nonlocal reached
        if measure is None or aim is None or (done % rule.every and done < training.steps):
            return False
        history[done] = agreed(float(measure(undistributed(student))))
        student.train()
        enough = rule.reached(history[done], aim)
        reached = enough and done >= min(rule.least, training.steps)
        if run is not None:
            write_json(run.path / RETAIN, {"teacher": aim, "student": [[*pair] for pair in sorted(history.items())]})
        return reached

    steps = train(student, source, training, objective, seed=seed, run=run, on_step=on_step, stop=stop)
    before = [value for done, value in history.items() if done < steps or done == 0]
    early = aim is not None and any(rule.reached(value, aim) for value in before)
    return Distilled(steps, reached, aim, dict(sorted(history.items())), early)
