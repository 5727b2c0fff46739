"""Unlearning in single calls, on the user's own model and texts: unlearn, undo (noise and distil), attack."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from torch import nn

from routed_rl.errors import UserError
from routed_rl.lm.adapters import check_plain
from routed_rl.lm.alternatives import Alternatives, check_pairs, other_answers, tokenised_questions
from routed_rl.lm.batches import Batches, WholeDocuments
from routed_rl.lm.corpora import Corpus
from routed_rl.lm.documents import Document
from routed_rl.lm.losses import evaluate
from routed_rl.lm.models import keeps_apart
from routed_rl.lm.processes import processes
from routed_rl.lm.processes import rank as process_rank
from routed_rl.lm.texts import Texts, row_length, text_corpus
from routed_rl.lm.training import Training
from routed_rl.runs import derive_seed
from routed_rl.runs.progress import progress_bar
from routed_rl.unlearning.attacks import relearn
from routed_rl.unlearning.copies import TrainedCopy, kept, new_like
from routed_rl.unlearning.distillation import StopRule, distil
from routed_rl.unlearning.methods import AnyMethod, made_any, with_settings
from routed_rl.unlearning.noise import matrices, shrink_and_perturb
from routed_rl.unlearning.procedures import Procedure
from routed_rl.unlearning.stage import SuppressionStage

MEASURED = 200
"""Documents of each set on which losses are measured, at most."""


def unlearn(
    model: nn.Module,
    tokenizer: Any,
    forget: Texts | Corpus,
    retain: Texts | None = None,
    method: AnyMethod = "npo",
    *,
    alternatives: Sequence[str] | None = None,
    rank: int | None = None,
    merge: bool = True,
    master_weights: bool = False,
    gradient_checkpointing: bool = False,
    accumulate: int = 1,
    shard: bool = False,
    batch_size: int = 16,
    length: int | None = None,
    pack: bool = True,
    allow_overlap: bool = False,
    seed: int = 0,
    progress: bool = True,
    callback: Callable[[int, nn.Module], None] = lambda steps, model: None,
    **settings: Any,
) -> nn.Module:
    """Return a copy of a causal language model that has unlearned the forget set.

    >>> unlearned = unlearn(model, tokenizer, forget, retain, method="graddiff", steps=100)  # doctest: +SKIP
    >>> adapted = unlearn(model, tokenizer, forget, retain, rank=16, merge=False)  # doctest: +SKIP
    >>> adapted.save_pretrained("adapter")  # doctest: +SKIP

    Under ``torchrun``, within :func:`~routed_rl.lm.process_group`, all processes train the copy together. Each makes
    the same call, and gets the result that one process would get, within rounding.

    The copy's weights have the dtype of the model's. During training the model itself is the reference model of methods
    that need one. :func:`memory` says how much memory a call needs.

    Args:
        model: a Hugging Face causal language model. The copy is on the same device. Do not use the model elsewhere
            during the call: it is frozen and in evaluation mode. Afterwards it is as before.
        tokenizer: the model's own.
        forget: documents to unlearn: strings, or a dataset with a column ``text``. Or a :class:`~routed_rl.lm.Corpus`,
            which has both sets; then leave out ``retain``.
        retain: documents on which the model should stay as good as before.
        method: a name in :data:`SUPPRESSORS` or of a method in an installed package; ``"MODULE:CLASS"``; or a subclass
            of :class:`Suppressor` or an instance. Or a procedure, which has several stages or changes weights directly:
            a name in :data:`PROCEDURES`, or a subclass of :class:`Procedure` or an instance.
        alternatives: for a method that teaches another answer (``idk-nll``, ``idk-dpo``, ``alt-po``), one answer for
            each document of ``forget``, in order. Or, except for ``alt-po``, a pool of another number of answers: each
            question gets one of them, fixed by ``seed``. None: the method's own pool. ``forget`` then has rows with a
            question and one answer, see :func:`~routed_rl.lm.from_row`.
        rank: of low-rank adapters (LoRA) on the linear layers that the method trains. Only they learn. None: all
            weights that the method trains.
        merge: with a rank, return a plain model with the adapters merged into its weights. False: a model of PEFT,
            whose ``save_pretrained`` writes the adapters alone. It shares its other weights with ``model``.
        master_weights: for a model in half precision: train float32 weights, with matrix products in bfloat16 if the
            model is in bfloat16. The result is rounded. Without it, small steps on such weights are rounded away.
        gradient_checkpointing: compute each block again in the backward pass. Results are the same. It takes about a
            third more time and much less memory.
        accumulate: parts in which a batch is computed one after the other, to save memory. Results are the same within
            rounding. It must divide the rows of a step, and of each process's share of them. For a method that teaches
            another answer, it must divide each process's share of ``batch_size``.
        shard: with several processes, divide the copy among them while it is trained: its weights, gradients and
            optimizer state (:func:`torch.distributed.fsdp.fully_shard`). Without it each process has the whole copy.
            ``model`` is whole on each process.
        batch_size: rows of each set in a gradient step.
        length: most tokens in a row. None: the longest document, at most 256. Longer documents are cut.
        pack: whether shorter documents share rows. They do not see each other. False: each has a row of its own, as
            always for a method that teaches another answer.
        allow_overlap: accept texts that are in both sets.
        seed: fixes the order of documents and the method's own randomness.
        progress: show a progress bar on standard error.
        callback: called after each gradient step, with the number of steps so far and the model in training, on all
            processes.
        **settings: ``steps``, ``learning_rate``, and the fields of the method's class, such as ``retain_weight``. Each
            stage of a procedure has this number of steps.

    Warns:
        UserWarning: if most weights are in half precision and too large to be moved by steps of the learning rate.

    Raises:
        ValueError: for an unknown method or setting, a method that cannot be imported, or too few documents for one
            batch. Also for ``merge=False`` without a rank, and for a rank if the model has adapters or the method
            trains no linear layer. Also for alternatives that the method does not take or that are missing, and for
            forget documents without a question.
        FloatingPointError: if the loss diverges.
    """
    if rank is None and not merge:
        raise ValueError("merge=False needs a rank: without adapters there is nothing to merge")
    chosen, name = made_any(method)
    chosen, recipe = with_settings(chosen, name, settings)
    if isinstance(chosen, Procedure) and not merge:
        raise UserError(f"merge=False does not go with {name}, whose stages merge their adapters: leave out merge")
    questions = None
    if alternatives is not None or chosen.alternatives is not None:
        forget = forget if isinstance(forget, str | Corpus) else list(forget)  # type: ignore[assignment]
        questions = other_answers(name, forget, chosen.alternatives, alternatives, seed)
        check_pairs("--batch-size", batch_size, processes() * accumulate)
        pack = False
    data = _Data(model, tokenizer, forget, retain, length, pack, allow_overlap)
    others = None if questions is None else data.alternatives(questions, tokenizer, length)
    options = {"master_weights": master_weights, "gradient_checkpointing": gradient_checkpointing, "shard": shard}
    steps = recipe.steps * (chosen.stages if isinstance(chosen, Procedure) else 1)
    with progress_bar(f"unlearn, {name}", steps, _shown(progress)) as tick:

        def after(steps: int, trained: nn.Module) -> None:
            callback(steps, trained)
            tick(steps)

        recipe = replace(recipe, accumulate=accumulate)
        stage = SuppressionStage(data, recipe, batch_size, rank, merge, options, after, others)
        sets = data.documents["forget"], data.documents["retain"]
        if isinstance(chosen, Procedure):
            return chosen.run(model, stage, *sets, seed)
        return stage(model, *sets, chosen, seed)


def undo(
    model: nn.Module,
    tokenizer: Any,
    forget: Texts | Corpus,
    retain: Texts | None = None,
    *,
    alpha: float | None = 0.6,
    beta: float = 0.1,
    steps: int = 1200,
    learning_rate: float = 2e-3,
    within: float | None = 0.05,
    least: int = 60,
    touched: Literal["all", "matrices"] = "matrices",
    rank: int | None = None,
    master_weights: bool = False,
    gradient_checkpointing: bool = False,
    accumulate: int = 1,
    shard: bool = False,
    batch_size: int = 16,
    length: int | None = None,
    pack: bool = True,
    allow_overlap: bool = False,
    seed: int = 0,
    progress: bool = True,
    callback: Callable[[int, nn.Module], None] = lambda steps, model: None,
) -> nn.Module:
    """Return a student with noised weights, distilled from an unlearned model (UNDO, Lee et al. 2025, section 4).

    The student starts as the unlearned model with noise of strength ``alpha`` (:func:`shrink_and_perturb`). Then it
    learns the unlearned model's output distribution on both sets. What the unlearned model hides, the student never
    learns, so a relearning attack finds less to bring back.

    >>> unlearned = unlearn(model, tokenizer, forget, retain)  # doctest: +SKIP
    >>> student = undo(unlearned, tokenizer, forget, retain, alpha=0.6)  # doctest: +SKIP

    With a rank, low-rank adapters learn on top of the noised weights. They are always merged, because without these
    noised weights they are of no use. Noise changes all ranks of a matrix, and the embeddings, so adapters repair less
    of it than a training of all weights: take a low ``alpha`` and a high rank, and compare retain losses.

    Args:
        model: the unlearned model, which is the teacher. As for :func:`unlearn`, it is only frozen during the call.
        tokenizer, forget, retain, batch_size, length, pack, allow_overlap, seed, progress, callback: as for
            :func:`unlearn`.
        alpha: how far each weight moves from its value (0) to noise (1). More is more robust, and takes more steps.
            None: the student is a new model of the same configuration (Unlearn-and-Distill).
        beta: scale of the noise (UNDO: 0.1).
        steps: gradient steps of distillation, at most.
        learning_rate: AdamW's highest; it decays by a cosine to a tenth.
        within: stop when the student's retain loss is at most this share above the teacher's. None: do all steps.
        least: smallest number of steps. Where noise costs little, the student would else stop at once.
        touched: weights that noise changes: "matrices", which leaves out biases and the scales of norms; or "all".
        rank: of low-rank adapters that learn on all linear layers but the last. None: all weights learn.
        master_weights, gradient_checkpointing, accumulate, shard: as for :func:`unlearn`.

    Warns:
        UserWarning: if the student is not as good as its teacher at the end, or was so after ``least`` steps already.
            Also as for :func:`unlearn`.

    Raises:
        ValueError: for numbers out of range, too few documents for one batch, or a model with adapters.
        FloatingPointError: if a loss diverges.
    """
    data = _Data(model, tokenizer, forget, retain, length, pack, allow_overlap)
    check_plain(model)
    options = {"master_weights": master_weights, "gradient_checkpointing": gradient_checkpointing, "shard": shard}
    copied = TrainedCopy(
        model if alpha is not None else new_like(model, derive_seed(seed, "student")), rank, **options, changed=True
    )
    if alpha is not None:
        touch = {"touch": matrices} if touched == "matrices" else {}
        shrink_and_perturb(copied.model, alpha, beta, derive_seed(seed, "noise"), **touch)
    copied.warn(learning_rate)
    copied.begin(derive_seed(seed, "adapters"))
    retained = data.measured("retain")
    what = "distil" if alpha is None else f"distil, α {alpha:g}"
    with kept(model), progress_bar(what, steps, _shown(progress)) as tick:

        def after(step: int) -> None:
            callback(step + 1, copied.model)
            tick(step)

        found = distil(
            copied.distributed,
            model,
            data.mixture(batch_size, derive_seed(seed, "distil")),
            copied.training(Training(steps, learning_rate, warmup=min(50, steps // 4), accumulate=accumulate)),
            None if within is None else (lambda tuned: evaluate(tuned, retained).mean()),
            StopRule(within or 0.0, least=least),
            seed=derive_seed(seed, "train"),
            on_step=after,
        )
    if within is not None and not found.reached:
        last = list(found.student.values())[-1]
        warnings.warn(
            f"after {found.steps} steps the student's retain loss is {last:.3f}, the teacher's {found.teacher:.3f}: "
            "raise steps or learning_rate, or lower alpha; a damaged student looks robust",
            stacklevel=2,
        )
    elif within is not None and found.early and alpha is not None:
        warnings.warn(
            f"noise with alpha={alpha:g} cost so little that distillation stopped after {found.steps} steps, its least "
            "number: the student is still close to its teacher, so raise alpha",
            stacklevel=2,
        )
    student: nn.Module = copied.result()
    return student


def attack(
    model: nn.Module,
    tokenizer: Any,
    forget: Texts | Corpus,
    retain: Texts | None = None,
    *,
    learning_rates: Sequence[float] = (1e-3, 3e-4, 1e-4, 3e-5),
    steps: int = 100,
    measured: Sequence[int] = (0, 5, 10, 20, 40, 60, 80, 100),
    rank: int | None = None,
    master_weights: bool = True,
    gradient_checkpointing: bool = False,
    accumulate: int = 1,
    shard: bool = False,
    batch_size: int = 16,
    length: int | None = None,
    pack: bool = True,
    allow_overlap: bool = False,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Return forget and retain loss during a relearning attack: fine-tuning on the forget set at each learning rate.

    An attacker is as strong as its best learning rate, and may stop early. So report the worst case within N steps: the
    lowest forget loss over all learning rates and all measured steps up to N. It is
    ``found.groupby("step").forget_loss.min().cummin()``; without ``cummin()``, each step is taken by itself. The
    attacked model is a copy.

    Args:
        model: the model to attack.
        tokenizer, forget, retain, batch_size, length, pack, allow_overlap, seed, progress: as for :func:`unlearn`.
        learning_rates: AdamW's, constant, one attack each.
        steps: gradient steps of each attack.
        measured: steps after which both losses are measured; later ones than ``steps`` are left out.
        rank: of LoRA adapters that the attacker trains. None: all weights.
        master_weights: as for :func:`unlearn`. The default differs, because an attack whose small steps are rounded
            away makes a model look robust.
        gradient_checkpointing, accumulate, shard: as for :func:`unlearn`.

    Returns:
        Columns ``learning_rate``, ``step``, ``forget_loss`` and ``retain_loss`` (nats a token). An attack that
        diverges ends early.

    Warns:
        UserWarning: if the model knows the forget set much better than the retain set before the attack, as if they had
            been swapped, or if an attack diverges.

    Raises:
        ValueError: for no learning rate or too few documents for one batch.
    """
    if not learning_rates:
        raise ValueError("learning_rates must be one or more, got none")
    data = _Data(model, tokenizer, forget, retain, length, pack, allow_overlap)
    kinds = {kind: data.measured(kind) for kind in ("forget", "retain")}
    source = data.batches(data.documents["forget"], batch_size, derive_seed(seed, "attack"))
    looks = [step for step in measured if step <= steps]
    rows: list[dict[str, float]] = []
    with progress_bar("attack", steps * len(learning_rates), _shown(progress)) as tick:
        for rate in learning_rates:
            found = relearn(
                model,
                source,
                steps,
                rate,
                looks,
                lambda tuned: {f"{kind}_loss": evaluate(tuned, documents).mean() for kind, documents in kinds.items()},
                rank=rank,
                master_weights=master_weights,
                gradient_checkpointing=gradient_checkpointing,
                accumulate=accumulate,
                shard=shard,
                seed=derive_seed(seed, "attack"),
                on_step=tick,
            )
            rows += [{"learning_rate": rate, **row} for row in found]
            if looks and (not found or found[-1]["step"] < max(looks)):
                warnings.warn(f"the attack at learning rate {rate:g} diverged: lower it", stacklevel=2)
    start = next((row for row in rows if row["step"] == 0), None)
    if start is not None and start["forget_loss"] < start["retain_loss"] / 2:
        warnings.warn(
            f"before the attack the forget loss is {start['forget_loss']:.3f} and the retain loss "
            f"{start['retain_loss']:.3f}: an unlearned model has a higher forget loss. Are forget and retain swapped?",
            stacklevel=2,
        )
    return pd.DataFrame(rows, columns=["learning_rate", "step", "forget_loss", "retain_loss"])


class _Data:
    """Tokenised forget and retain sets, and batches of them."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        forget: Texts | Corpus,
        retain: Texts | None,
        length: int | None,
        pack: bool,
        allow_overlap: bool = False,
    ) -> None:
        if isinstance(forget, Corpus):
            if retain is not None:
                raise ValueError("a Corpus has both sets: leave out retain")
            self.corpus = forget
        elif retain is None:
            raise ValueError("retain is missing: pass documents on which the model should stay as good as before")
        else:
            self.corpus = text_corpus(tokenizer, forget, retain, allow_overlap)
        self.documents = {kind: self.corpus.documents("train", kind) for kind in ("forget", "retain")}  # type: ignore[arg-type]
        self.labelled = self.corpus.labelled(1.0)
        self.model = model
        self.length, self.pack = length or row_length(self.corpus, model), pack and keeps_apart(model)

    def alternatives(self, documents: list[Document], tokenizer: Any, length: int | None) -> Alternatives:
        """Return the forget documents with other answers. Rows become long enough, unless a length is given."""
        found = Alternatives(self.documents["forget"], tokenised_questions(documents, tokenizer))
        if length is None:
            self.length = max(self.length, row_length(found.corpus, self.model))
        return found

    def batches(self, documents: np.ndarray, batch_size: int, seed: int) -> Batches:
        return Batches(self.corpus, documents, self.length, batch_size, seed, self.labelled, self.pack)

    def mixture(self, batch_size: int, seed: int) -> Batches:
        """Return batches of both sets. The smaller set is repeated until both are about as large (UNDO, section 4)."""
        largest = max(map(len, self.documents.values()))
        both = [np.tile(found, max(round(largest / len(found)), 1)) for found in self.documents.values()]
        return Batches(self.corpus, np.concatenate(both), self.length, batch_size, seed, pack=self.pack)

    def measured(self, kind: str) -> WholeDocuments:
        return WholeDocuments(self.corpus, self.documents[kind][:MEASURED])


def _shown(progress: bool) -> bool:
    """Return whether this process shows a progress bar: the first one does."""
    return progress and process_rank() == 0
