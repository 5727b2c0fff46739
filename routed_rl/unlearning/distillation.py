"""Distillation: a student learns to say what a teacher says, until it does well enough on what is retained.

``B`` rows, ``T`` tokens a row, ``D`` residual dimensions. UNDO (Lee et al. 2025) distils a model that has suppressed
something into a noised copy of itself (:func:`~routed_rl.unlearning.shrink_and_perturb`). With other students and
teachers the same call distils into a random initialisation, or matches an oracle.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from routed_rl.lm.batches import Batch
from routed_rl.lm.models import blocks
from routed_rl.lm.processes import processes, undistributed
from routed_rl.lm.streams import outputs
from routed_rl.lm.training import Source, Training, train
from routed_rl.runs import RunDirectory, read_json, write_json
from routed_rl.unlearning.divergence import CHUNK, Head, divergence, teacher_target
from routed_rl.unlearning.teacher_cache import TeacherCache

RETAIN = "retain.json"
"""The file of a run with what was measured on the way."""


class DistillationObjective:
    """``Σ KL(p_teacher; p_student)`` over scored targets, for :func:`~routed_rl.lm.train`: over whole vocabularies, at
    temperature 1, without labels (UNDO; Hinton et al. 2015).

    Args:
        teacher: a model, which is frozen from now on, whole on every process; or what is cached of one.
        hidden_weight: of the squared difference of residual streams, a mean over dimensions and over the blocks after
            which they are compared, added at each scored target (UNDO's code: 10 in a variant, else 0).
        chunk: how many positions' logits are in memory at a time.

    Raises:
        ValueError: for arguments out of their ranges; when called, for models of different vocabularies or, where
            streams are compared, of different widths or depths.
    """

    def __init__(self, teacher: nn.Module | TeacherCache, hidden_weight: float = 0.0, chunk: int = CHUNK) -> None:
        if not 0 <= hidden_weight < math.inf or chunk < 1:
            raise ValueError(
                f"hidden_weight must be 0 or more and chunk 1 or more, got {hidden_weight} and {chunk} positions"
            )
        if isinstance(teacher, TeacherCache):
            if hidden_weight:
                raise ValueError("a cache holds no residual streams: compare them with a teacher that is a model")
        else:
            teacher.requires_grad_(False).eval()
        self.teacher, self.hidden_weight, self._chunk = teacher, hidden_weight, chunk
        self._splits: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        check_vocabulary(model, self.teacher)
        hidden, head, streams = self._run(model, batch.tokens)
        if isinstance(self.teacher, TeacherCache):
            target = self.teacher.target(batch.tokens, batch.scored)
        else:
            with torch.no_grad():
                of_teacher, its_head, its_streams = self._run(self.teacher.to(hidden.device), batch.tokens)
            target = teacher_target(of_teacher[:, :-1][batch.scored], its_head)
        loss = divergence(hidden[:, :-1][batch.scored], head, target, self._chunk)
        if self.hidden_weight:
            loss = loss + self.hidden_weight * _distance(streams, its_streams)[:, :-1][batch.scored].sum()
        return loss

    def _run(self, model: nn.Module, tokens: Tensor) -> tuple[Tensor, Head, list[Tensor]]:
        """``(B, T, D)`` last hidden states, their head, and the residual streams after each block."""
        inner = undistributed(model)
        watched = [inner.get_submodule(name) for name in blocks(inner)] if self.hidden_weight else []
        with outputs(*watched) as streams:
            found = None
            if self._splits.get(inner, True):
                found = last_hidden(model, tokens, check=inner not in self._splits)
                self._splits[inner] = found is not None
            if found is None:
                streams.clear()
                found = model(input_ids=tokens, use_cache=False).logits, Head()
        return *found, streams


def last_hidden(model: nn.Module, tokens: Tensor, check: bool = True) -> tuple[Tensor, Head] | None:
    """``(B, T, D)``, what a model computes before its logits, and the head that makes them of it; None where that is
    not known to be all it does: for a model that is not of transformers, whose head is no plain linear layer, or which
    makes other logits of its last hidden states.

    The model is called as a whole, so that it may be distributed, but makes only each row's last logits.

    Args:
        check: whether to compare these with those of the head.
    """
    inner = undistributed(model)
    if not isinstance(inner, PreTrainedModel) or "logits_to_keep" not in inspect.signature(inner.forward).parameters:
        return None
    head = inner.get_output_embeddings()
    if not _is_plain_linear(head):
        return None
    with outputs(inner.get_decoder()) as seen:
        last = model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits
    if len(seen) != 1 or seen[0].shape[-1] != head.in_features or isinstance(head.weight, DTensor):
        return None  # a sharded model may have its head together after a forward pass, or in parts
    cap = getattr(inner.config.get_text_config(), "final_logit_softcapping", None)
    found = seen[0], Head(head.weight, head.bias, cap)
    if check:
        with torch.no_grad():
            again = found[1].as_computed(last.device.type)(seen[0][:, -1:])
        difference, size = (logits.abs().max() for logits in (again - last, last))
        if not (size > 0 and difference <= 1e-3 * size):  # logits that are all 0, or no numbers, prove nothing
            return None
    return found


def _is_plain_linear(module: Any) -> bool:
    """Whether a module is torch's linear layer and nothing looks into it or has changed it, as a router does."""
    # torch has no public way to ask for hooks.
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return type(module) is nn.Linear and "forward" not in vars(module) and not any(vars(module)[name] for name in hooks)


def _distance(streams: list[Tensor], others: list[Tensor]) -> Tensor:
    """``(B, T)``: squared differences, a mean over dimensions and streams."""
    sizes = [(len(of_model), of_model[0].shape[-1]) for of_model in (streams, others)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            "residual streams can be compared between models of the same depth and width: the student has {} blocks of "
            "{} dimensions, the teacher {} of {}".format(*sizes[0], *sizes[1])
        )
    pairs = zip(streams, others, strict=True)
    return torch.stack([(stream - other).square().mean(dim=-1) for stream, other in pairs]).mean(dim=0)


def check_vocabulary(student: nn.Module, teacher: nn.Module | TeacherCache) -> None:
    """ValueError if student and teacher do not have as many tokens."""
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
    """When a student does well enough on what is retained: "recover 95 % of the teacher's performance" (UNDO).

    >>> StopRule(0.05, higher_is_better=True).reached(student=0.95, teacher=1.0)
    True
    """

    within: float = 0.05
    """how far the student may be from the teacher"""
    relative: bool = True
    """a share of the teacher's number; else in the number's own unit"""
    higher_is_better: bool = False
    """as of an accuracy; else lower is, as of a loss"""
    every: int = 20
    """steps between measurements, the first before any step; at the last step there is one too"""

    def __post_init__(self) -> None:
        if not 0 <= self.within < math.inf or self.every < 1:
            raise ValueError(f"within must be 0 or more and every 1 or more, got {self.within} and {self.every}")

    def reached(self, student: float, teacher: float) -> bool:
        """Whether to stop: a student that is better than its teacher always does.

        Raises:
            FloatingPointError: if one of the numbers is none.
            ValueError: for a share of a teacher's number that is not above 0.
        """
        for name, value in (("student", student), ("teacher", teacher)):
            if not math.isfinite(value):
                raise FloatingPointError(f"what the {name} retains was measured as {value}, which is no number")
        if self.relative and teacher <= 0:
            raise ValueError(f"a share of the teacher's {teacher} says nothing: measure the difference, relative=False")
        if self.relative and self.higher_is_better:
            return student >= (1 - self.within) * teacher
        # Here the public code asks for less than the margin.
        short = teacher - student if self.higher_is_better else student - teacher
        return short <= 0 or short < (self.within * teacher if self.relative else self.within)


@dataclass(frozen=True)
class Distilled:
    """How a distillation went.

    Attributes:
        steps: gradient steps.
        reached: whether the rule was met; False without one.
        teacher: what was measured of the teacher; None without a rule.
        student: by step, of the student.
    """

    steps: int
    reached: bool
    teacher: float | None
    student: dict[int, float]


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
    """Train a student on a teacher's predictions, in place, until it does about as well on what is retained.

    The learning rate falls over ``training.steps``, the most that are done, and where the rule ends it earlier it is
    still high (as in UNDO's code). A killed run goes on as :func:`~routed_rl.lm.train` does; one that was stopped stays
    so.

    Args:
        student: as :func:`~routed_rl.lm.distribute` gives it; what requires gradients learns, and of a model out of
            RMU that is little until ``requires_grad_(True)``.
        teacher: on the same device, whole on every process; it is frozen.
        source: unlabelled text of all kinds, that to forget too: elsewhere the student is merely undefined.
        measure: of a model, how well it does on what is retained; None: there is no rule, all steps are done.
        cache: of the teacher, on every step's batch; None: the teacher is run in every step.
        hidden_weight: as in :class:`DistillationObjective`.
        run: on the first process alone; there :data:`RETAIN` has what was measured.

    Raises:
        FloatingPointError, ValueError: as :func:`~routed_rl.lm.train`, :class:`DistillationObjective` and
            :meth:`StopRule.reached`; and if nothing in the student requires gradients, or a parameter is the teacher's
            own.
    """
    check_vocabulary(student, teacher)
    own = {id(parameter) for parameter in student.parameters()}
    if any(id(parameter) in own for parameter in teacher.parameters()):
        raise ValueError("student and teacher share parameters: distil into a copy")
    objective = DistillationObjective(teacher if cache is None else cache, hidden_weight)
    if not any(parameter.requires_grad for parameter in student.parameters()):
        raise ValueError("nothing in the student requires gradients: call requires_grad_(True) on what is to learn")
    aim = None if measure is None else _agreed(measure(teacher))
    history: dict[int, float] = {}
    if run is not None and (run.path / RETAIN).exists():
        history = dict(read_json(run.path / RETAIN)["student"])
    reached = False

    def stop(done: int) -> bool:
        nonlocal reached
        if measure is None or aim is None or (done % rule.every and done < training.steps):
            return False
        history[done] = _agreed(measure(undistributed(student)))
        student.train()
        reached = rule.reached(history[done], aim)
        if run is not None:
            write_json(run.path / RETAIN, {"teacher": aim, "student": [[*pair] for pair in sorted(history.items())]})
        return reached

    steps = train(student, source, training, objective, seed=seed, run=run, on_step=on_step, stop=stop)
    return Distilled(steps, reached, aim, dict(sorted(history.items())))


def _agreed(value: float) -> float:
    """The first process's number, on all of them, so that all stop or none."""
    if processes() == 1:
        return float(value)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    number = torch.tensor(float(value), dtype=torch.float64, device=device)
    dist.broadcast(number, 0)
    return float(number)
