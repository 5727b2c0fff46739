"""One model of a study of Expand-Route-Ablate: train it, remove a topic from it, repair it and attack it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from routed_rl.errors import UserError, user_input
from routed_rl.lm.adapters import Adapters, add_adapters, delete_forget
from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, Batch, Batches
from routed_rl.lm.era import NEW, ORIGINAL, TABLE, EraObjective, Expansion, ablate, era_weights, expand, expert_weights
from routed_rl.lm.era_study.checks import check_options
from routed_rl.lm.era_study.division import Division
from routed_rl.lm.era_study.methods import METHODS
from routed_rl.lm.fine_tuning import FineTuning, fine_tune
from routed_rl.lm.forget_and_retain import ForgetAndRetain
from routed_rl.lm.inputs import Text, files_identity, make_model, open_text
from routed_rl.lm.losses import document_losses, evaluate
from routed_rl.lm.models import PRESETS, keeps_apart, save_model
from routed_rl.lm.processes import distribute, gathered_state, process_group, processes, rank
from routed_rl.lm.structure import blocks, feed_forward
from routed_rl.lm.suppressors.rmu import Rmu
from routed_rl.lm.training import Objective, Training, train
from routed_rl.options import RUNS
from routed_rl.options.era import Unlearn
from routed_rl.routing import GradientRouter
from routed_rl.runs import RunDirectory, config_hash, derive_seed
from routed_rl.runs.grid import is_finished
from routed_rl.runs.progress import progress_bar
from routed_rl.wording import written

MODEL = "model"
PROMPT_TOKENS, SAMPLE_TOKENS = 8, 40

Trained = tuple[nn.Module, Expansion | Adapters | None, GradientRouter | None]
"""A model, its new units or adapters for the topic, and its router."""


def run_config(command: Unlearn) -> dict[str, Any]:
    """Return the configuration of a run: its options, with the content of files and folders in place of their names.

    Raises:
        ValueError, OSError: for files or folders that cannot be read.
    """
    return {**command.config(), **files_identity(command)}


def run_path(command: Unlearn) -> Path:
    """Return the directory of the run."""
    out = command.out or RUNS / f"unlearn-{command.method}-{config_hash(run_config(command))}-s{command.seed}"
    return Path(os.path.realpath(out))


def open_run(command: Unlearn) -> RunDirectory:
    """Open the directory of a new or interrupted run; RunError if it cannot be used."""
    return RunDirectory.open(run_path(command), run_config(command), command.seed, force=command.force)


def train_and_ablate(command: Unlearn) -> RunDirectory | None:
    """Train a language model, remove a topic from it, repair and attack it, as ``routed-rl unlearn`` does.

    An interrupted run continues. A finished run is not repeated, unless ``force`` is set.

    Returns:
        The run, with its result. With several processes (``torchrun``), all but the first return None.

    Raises:
        UserError: before training, for options that do not suit the corpus, the model or each other.
    """
    with ExitStack() as stack:
        trained = None
        with process_group(command.device) as device:
            with user_input():
                check_options(command, processes())
                pipeline = Pipeline(command, open_text(command), device)
                finished = is_finished(run_path(command)) and not command.force
                if not finished:
                    pipeline.check()
                run = stack.enter_context(open_run(command)) if rank() == 0 else None
            if not finished:
                trained = pipeline.train(run)
        if run is None:
            return None
        if trained is None:
            print(f"{run.path} is finished; this is its result (start over with --force)", file=sys.stderr)
        else:
            pipeline.finish(run, *trained)
        return run


class Pipeline:
    """The steps of one run: train, ablate, repair, measure, attack.

    Raises:
        ValueError: for options that do not suit the corpus, the model or each other.
    """

    def __init__(self, command: Unlearn, text: Text, device: torch.device | None = None) -> None:
        self.command, self.text, self.method = command, text, METHODS[command.method]
        self.device = device or torch.device("cpu")
        self.data = Division(command, text)
        if command.adapters is not None and not self.method.expands:
            raise ValueError(
                f"{written('--method', command.method)} has no adapters, only era, control and demix: leave out "
                "--adapters"
            )
        if self.method.misdirects and not len(self.data.marked):
            got = written("--labelled", command.labelled)
            raise ValueError(f"{written('--method', command.method)} needs labelled documents, got {got}")
        self.wrongly_chosen: float | None = None
        """share of forget documents among those chosen for the second repair, for the result only"""

    def check(self) -> None:
        """Make the model, objectives and batches of all steps once, to find mistakes early.

        Raises:
            ValueError, OSError: for options that a later step could not use.
        """
        model, new = self._model()
        self._objective(model, new)
        if self.method.misdirects:
            self._rmu(model)
        self._source(model)
        if self.method.expands and self.data.chosen:
            shortest = self.data.candidates[np.argsort(np.diff(self.text.corpus.starts)[self.data.candidates])]
            self._repair_batches(model, shortest[: self.data.chosen])

    def train(self, run: RunDirectory | None) -> Trained | None:
        """Train on all processes. Only the first process, which has the run directory, returns the model."""
        command = self.command
        with user_input():
            model, new = self._model()
            objective = self._objective(model, new)
            source = self._source(model)
            trained = distribute(model, command.shard)
        with self._progress(command.steps, run is None) as tick, objective.router or nullcontext():
            train(trained, source, self._training(), objective, seed=command.seed, run=run, on_step=tick)
        state = gathered_state(trained)
        if run is None:
            return None
        if command.shard:  # each process has only a part of the trained model
            del trained, objective
            model, new = self._model()
            objective = self._objective(model, new)
            model.load_state_dict(state)
        return model, new, objective.router

    @contextmanager
    def _progress(self, total: int, disable: bool = False) -> Iterator[Callable[..., None]]:
        """Show progress. Divergence and lack of memory become UserErrors."""
        command = self.command
        with progress_bar(f"{command.method}, {command.labelled:.0%} labelled", total, not disable) as tick:
            try:
                yield tick
            except FloatingPointError as error:
                raise UserError(str(error)) from error
            except torch.OutOfMemoryError as error:
                raise UserError(f"the device has too little memory, raise --accumulate: {error}") from error

    def _model(self) -> tuple[nn.Module, Expansion | Adapters | None]:
        """The model, and its new units or adapters for the topic."""
        command = self.command
        model = make_model(command, self.text.tokenizer, command.seed)
        new: Expansion | Adapters | None = None
        if self.method.expands:
            seed = derive_seed(command.seed, "units")
            if command.adapters is not None:
                new = add_adapters(model, command.adapters, seed, self._projections(model))
                model = new.model
            else:
                experts = self.method.weights == "experts"  # an expert of every MLP, of the same size
                layers = range(len(blocks(model))) if experts else command.layers
                new = expand(model, layers, None if experts else command.units, seed, command.projections)
        return model.to(self.device), new

    def _projections(self, model: nn.Module) -> list[str] | None:
        """The linear layers of the model's MLPs, if the options name them."""
        named = self.command.projections
        if named is None:
            return None
        return [name for layer in range(len(blocks(model))) for name in feed_forward(model, layer, named).linear]

    def _objective(self, model: nn.Module, new: Expansion | Adapters | None) -> EraObjective:
        command, method = self.command, self.method
        if new is None:
            return EraObjective()
        expansion = new if isinstance(new, Expansion) else None
        if method.weights == "experts":
            return EraObjective(GradientRouter(model, new.sites("forward"), TABLE, "forward"), expert_weights)
        if method.weights is None:
            return EraObjective(expansion=expansion, l1=command.l1)
        weights = era_weights(torch.tensor(self.data.token_weight, dtype=torch.float32), self._alpha())
        router = GradientRouter(model, new.sites(command.mode), TABLE, command.mode)
        return EraObjective(router, weights, expansion, command.l1)

    def _alpha(self) -> float:
        usual = -0.75 if self.command.mode == "activation" else 0.0
        return usual if self.command.alpha is None else self.command.alpha

    def _training(self) -> Training:
        names = ("steps", "learning_rate", "warmup", "accumulate", "precision")
        return Training(**{name: getattr(self.command, name) for name in names})

    def _source(self, model: nn.Module) -> Batches:
        """The batches of training."""
        documents = self.data.others if self.method.drops else self.data.train
        return self._batches(model, documents, self.command.batch_size, derive_seed(self.command.seed, "order"))

    def _repair_batches(self, model: nn.Module, chosen: np.ndarray) -> Batches:
        """The batches of the second repair."""
        rows, seed = self.command.repair.documents, derive_seed(self.command.seed, "repair order")
        return self._batches(model, chosen, rows, seed, "--repair.documents")

    def _batches(self, model: nn.Module, chosen: np.ndarray, rows: int, seed: int, of: str = "--batch-size") -> Batches:
        """Batches of documents, packed if the options say so and the model keeps packed documents apart."""
        return self.data.batches(chosen, rows, seed, self.command.pack and keeps_apart(model), of)

    def finish(
        self, run: RunDirectory, model: nn.Module, new: Expansion | Adapters | None, router: GradientRouter | None
    ) -> None:
        """Measure the trained model, ablate, repair, save and attack it, and write the result."""
        command, method = self.command, self.method
        repair, attack = command.repair, command.attack
        total = command.rmu.steps * method.misdirects + attack.steps * attack.repeats * len(attack.documents)
        if method.expands:
            total += repair.steps + (repair.chosen_steps if self.data.chosen else 0)
        with self._progress(total) as tick:
            run.finish(self._steps(run, model, new, router, tick))

    def _steps(
        self,
        run: RunDirectory,
        model: nn.Module,
        new: Expansion | Adapters | None,
        router: GradientRouter | None,
        tick: Callable[..., None],
    ) -> dict[str, Any]:
        """Do what :meth:`finish` describes, and return the result."""
        command, method = self.command, self.method
        experts = router if method.weights == "experts" else None
        losses = {}
        if command.model not in PRESETS and command.steps:
            original = make_model(command, self.text.tokenizer, command.seed).to(self.device)
            losses["pretrained"] = self._losses(original)
            del original
        losses["trained"] = self._losses(model, experts)
        samples = {"trained": self._samples(model, experts)}
        if new is not None:
            before = self._candidate_losses(model)
            if isinstance(new, Adapters):
                model = delete_forget(new)
            else:
                ablate(model, new)
            losses["ablated"] = self._losses(model)
            model = self._repaired(model, tick)
            if before is not None:
                losses["repaired"] = self._losses(model)
                self._repair_further(model, before, tick)
        if method.misdirects:
            self._misdirect(model, tick)
        losses["finished"] = self._losses(model)
        samples["finished"] = self._samples(model)
        save_model(model, self.text.tokenizer, run.path / MODEL)
        relearning = {str(n): self._attack(model, n, tick) for n in command.attack.documents}
        return {
            "losses": losses,
            "relearning": relearning,
            "samples": samples,
            "labelled_documents": len(self.data.marked),
            "training_documents": len(self.data.train),
            "routed_tokens": int(self.data.routed.sum()),
            "wrongly_chosen": self.wrongly_chosen,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        }

    def _losses(self, model: nn.Module, experts: GradientRouter | None = None) -> dict[str, float | None]:
        """The loss on test documents of each kind, in nats per token.

        Forget documents also have losses of routed and of other tokens; a loss without tokens is None.
        """
        found = {}
        for kind, documents in self.data.test.items():
            if experts is None:
                found[kind] = evaluate(model, documents)
            else:
                with experts:
                    found[kind] = evaluate(model, documents, partial(_to_expert, experts, kind))
        forget = found["forget"]
        routed = np.zeros(len(forget.total), dtype=bool)  # model and tokenizer may have different numbers of tokens
        routed[: len(self.data.routed)] = self.data.routed[: len(routed)]
        parts = {"forget_routed": forget.mean(routed), "forget_rest": forget.mean(~routed)}
        return {
            "forget": forget.mean(),
            "retain": found["retain"].mean(),
            **{name: None if np.isnan(loss) else loss for name, loss in parts.items()},
        }

    def _candidate_losses(self, model: nn.Module) -> np.ndarray | None:
        """The loss of each candidate for the second repair; None if there is no second repair."""
        return document_losses(model, self.data.whole(self.data.candidates)) if self.data.chosen else None

    def _repaired(self, model: nn.Module, tick: Callable[..., None]) -> nn.Module:
        """Return the ablated model, fine-tuned on a few retain documents."""
        repair, selection = self.command.repair, self.data.whole(self.data.selection)
        settings = FineTuning(repair.steps, repair.learning_rate)

        def measure(tuned: nn.Module) -> dict[str, float]:
            return {"selection": evaluate(tuned, selection).mean()}

        return fine_tune(model, self.data.whole(self.data.repair), settings, measure, tick)[0]

    def _repair_further(self, model: nn.Module, before: np.ndarray, tick: Callable[..., None]) -> None:
        """Second repair: train the repaired model on the unlabelled documents whose loss has risen least.

        Args:
            before: losses of the candidates before ablation.
        """
        command, repair = self.command, self.command.repair
        lost = self._candidate_losses(model) - before
        chosen = np.sort(np.argsort(lost)[: self.data.chosen])  # NaN, of documents that are no candidates, comes last
        source = self._repair_batches(model, chosen)
        training = Training(repair.chosen_steps, command.learning_rate, warmup=0, precision=command.precision)
        train(model, source, training, seed=derive_seed(command.seed, "repair"), on_step=tick)
        self.wrongly_chosen = float(self.text.corpus.to_forget[chosen].mean())

    def _misdirect(self, model: nn.Module, tick: Callable[..., None]) -> None:
        rmu, seed = self.command.rmu, self.command.seed
        objective, source = self._rmu(model)
        training = Training(rmu.steps, rmu.learning_rate, warmup=0, final=1.0)
        train(model, source, training, objective, seed=seed, on_step=tick)
        model.requires_grad_(True)

    def _rmu(self, model: nn.Module) -> tuple[Objective, ForgetAndRetain]:
        """Prepare the model for RMU, and return the objective and its batches."""
        rmu, seed = self.command.rmu, self.command.seed
        forget, retain = (
            self._batches(model, documents, rmu.batch_size, derive_seed(seed, "rmu", kind), "--rmu.batch-size")
            for kind, documents in enumerate((self.data.marked, self.data.others))
        )
        direction = derive_seed(seed, "direction")
        method = Rmu(rmu.depth, rmu.norm, rmu.retain_weight, projections=self.command.projections)
        return method.objective(model, direction), ForgetAndRetain(forget, retain)

    def _attack(self, model: nn.Module, documents: int, tick: Callable[..., None]) -> list[list[tuple[float, float]]]:
        """Return, for each repeated attack, pairs of an attack step (from 0) and the forget loss after it."""
        attack, curves = self.command.attack, []
        settings = FineTuning(attack.steps, attack.learning_rate, attack.every)

        def measure(tuned: nn.Module) -> dict[str, float]:
            return {"forget": evaluate(tuned, self.data.test["forget"]).mean()}

        for repeat in range(attack.repeats):
            few = self.data.attackers(documents, repeat)
            _, history = fine_tune(model, few, settings, measure, tick)
            curves.append([(entry["step"], entry["forget"]) for entry in history])
        return curves

    def _samples(self, model: Any, experts: GradientRouter | None = None) -> list[str]:
        """Continue the beginnings of some forget documents, with the model or its expert of the topic."""
        tokenizer, corpus, length = self.text.tokenizer, self.text.corpus, self.command.length
        samples = []
        model.eval()
        with ExitStack() as stack:
            if experts is not None:
                one = torch.ones(1, device=self.device)
                stack.enter_context(experts)
                stack.enter_context(experts(weights={NEW: one, ORIGINAL: 0 * one}))
            for document in self.data.prompts:
                begin, end = corpus.starts[document : document + 2]
                begun = corpus.tokens[begin : min(begin + PROMPT_TOKENS, begin + length - 1, end)].astype(np.int64)
                prompt = torch.from_numpy(begun)[None].to(model.device)
                torch.manual_seed(derive_seed(self.command.seed, "sample", int(document)))
                new = min(SAMPLE_TOKENS, length - prompt.shape[1])
                made = model.generate(
                    prompt,
                    attention_mask=torch.ones_like(prompt),
                    do_sample=True,
                    temperature=0.8,
                    max_new_tokens=new,
                    top_k=0,
                )
                samples.append(tokenizer.decode(made[0], skip_special_tokens=True))
        return samples


def _to_expert(router: GradientRouter, kind: str, batch: Batch) -> Any:
    """A context in which a whole batch is sent to the expert of its kind."""
    labels = torch.full_like(batch.labels, FORGET_LABEL if kind == "forget" else NO_LABEL)
    return router(weights=expert_weights(replace(batch, labels=labels)))
