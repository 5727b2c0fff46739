"""One model of a study of Expand-Route-Ablate: trained, rid of a topic, repaired and attacked; resumable."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from routed_rl.errors import UserError, user_input
from routed_rl.lm.adapters import Adapters, add_adapters, delete_forget
from routed_rl.lm.batches import Batches
from routed_rl.lm.era import NEW, ORIGINAL, TABLE, EraObjective, Expansion, ablate, era_weights, expand, expert_weights
from routed_rl.lm.era_study.checks import check_options
from routed_rl.lm.era_study.division import Division
from routed_rl.lm.era_study.methods import METHODS
from routed_rl.lm.fine_tuning import FineTuning, fine_tune
from routed_rl.lm.forget_and_retain import ForgetAndRetain
from routed_rl.lm.inputs import Text, files_identity, make_model, open_text
from routed_rl.lm.losses import document_losses, evaluate
from routed_rl.lm.models import blocks, mlp, save_model
from routed_rl.lm.processes import distribute, gathered_state, process_group, processes, rank
from routed_rl.lm.suppressors.rmu import Rmu
from routed_rl.lm.training import Objective, Training, train
from routed_rl.options import RUNS
from routed_rl.options.era import Unlearn
from routed_rl.routing import GradientRouter
from routed_rl.runs import RunDirectory, config_hash, derive_seed
from routed_rl.runs.grid import is_finished
from routed_rl.runs.progress import progress_bar

MODEL = "model"
PROMPT_TOKENS, SAMPLE_TOKENS = 8, 40

Trained = tuple[nn.Module, Expansion | Adapters | None, GradientRouter | None]
"""A model, what it has for the topic, and the router of both."""


def run_config(command: Unlearn) -> dict[str, Any]:
    """What a run depends on: its options, with files and folders by what is in them; ValueError or OSError if they
    cannot be read."""
    return {**command.config(), **files_identity(command)}


def run_path(command: Unlearn) -> Path:
    """Where the run is, or will be."""
    out = command.out or RUNS / f"unlearn-{command.method}-{config_hash(run_config(command))}-s{command.seed}"
    return Path(os.path.realpath(out))


def open_run(command: Unlearn) -> RunDirectory:
    """The run's directory, new or to be continued; RunError if it cannot be used."""
    return RunDirectory.open(run_path(command), run_config(command), command.seed, force=command.force)


def train_and_ablate(command: Unlearn) -> RunDirectory | None:
    """Train a language model, take a topic out of it, repair and attack it; what ``routed-rl unlearn`` does.

    An interrupted run continues. A finished one is not done again, unless ``force`` says so.

    Returns:
        The run, with its result; None on all processes but the first of several (``torchrun``).

    Raises:
        UserError: for options that the corpus, the model or one another do not bear, before anything is trained.
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
        ValueError: for options that the corpus, the model or one another do not bear.
    """

    def __init__(self, command: Unlearn, text: Text, device: torch.device | None = None) -> None:
        self.command, self.text, self.method = command, text, METHODS[command.method]
        self.device = device or torch.device("cpu")
        self.data = Division(command, text)
        if command.adapters is not None and not self.method.expands:
            raise ValueError(f"--adapters are for era, control and demix, not for --method {command.method}")
        if self.method.misdirects and not len(self.data.marked):
            raise ValueError(f"--method {command.method} needs labelled documents, got --labelled {command.labelled}")
        self.wrongly_chosen: float | None = None
        """of the documents chosen for repair, the share that is of the topic; nobody sees it but the result"""

    def check(self) -> None:
        """Make once all that the steps are done with.

        Raises:
            ValueError, OSError: for options that a later step would not bear.
        """
        command = self.command
        model, new = self._model()
        self._objective(model, new)
        if self.method.misdirects:
            self._rmu(model)
        self._source()
        if self.method.expands and self.data.chosen:
            shortest = self.data.candidates[np.argsort(np.diff(self.text.corpus.starts)[self.data.candidates])]
            self.data.batches(shortest[: self.data.chosen], command.repair.documents)
        for documents in (
            self.data.repair,
            self.data.selection,
            *(self.data.pool[:n] for n in command.attack.documents),
        ):
            self.data.batches(documents)

    def train(self, run: RunDirectory | None) -> Trained | None:
        """Train, on all processes; None but on the first, which has the run directory."""
        command = self.command
        with user_input():
            model, new = self._model()
            objective = self._objective(model, new)
            source = self._source()
            trained = distribute(model, command.shard)
        with self._progress(command.steps, run is None) as tick, objective.router or nullcontext():
            train(trained, source, self._training(), objective, seed=command.seed, run=run, on_step=tick)
        state = gathered_state(trained)
        if run is None:
            return None
        if command.shard:  # the parts of what was trained are on all processes
            del trained, objective
            model, new = self._model()
            objective = self._objective(model, new)
            model.load_state_dict(state)
        return model, new, objective.router

    @contextmanager
    def _progress(self, total: int, disable: bool = False) -> Iterator[Callable[..., None]]:
        """Shows how far the steps are; what diverges is the user's to hear."""
        command = self.command
        with progress_bar(f"{command.method}, {command.labelled:.0%} labelled", total, not disable) as tick:
            try:
                yield tick
            except FloatingPointError as error:
                raise UserError(str(error)) from error
            except torch.OutOfMemoryError as error:
                raise UserError(f"the device has not enough memory: {error}") from error

    def _model(self) -> tuple[nn.Module, Expansion | Adapters | None]:
        """The model, and what it has for the topic."""
        command = self.command
        model = make_model(command, self.text.tokenizer, command.seed)
        new: Expansion | Adapters | None = None
        if self.method.expands:
            seed = derive_seed(command.seed, "units")
            if command.adapters is not None:
                new = add_adapters(model, command.adapters, seed, self._projections(model))
                model = new.model
            else:
                experts = self.method.weights == "experts"  # of every MLP, as large as it
                layers = range(len(blocks(model))) if experts else command.layers
                new = expand(model, layers, None if experts else command.units, seed, command.projections)
        return model.to(self.device), new

    def _projections(self, model: nn.Module) -> list[str] | None:
        """The linear layers of the model's MLPs, where the options say how they are called."""
        named = self.command.projections
        if named is None:
            return None
        hidden = [mlp(model, layer, named) for layer in range(len(blocks(model)))]
        return [name for place in hidden for name in (*place.producers, place.consumer)]

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
        if self.command.alpha is not None:
            return self.command.alpha
        return -0.75 if self.command.mode == "activation" else 0.0

    def _training(self) -> Training:
        names = ("steps", "learning_rate", "warmup", "accumulate", "precision")
        return Training(**{name: getattr(self.command, name) for name in names})

    def _source(self) -> Batches:
        """What is trained on."""
        documents = self.data.others if self.method.drops else self.data.train
        return self.data.batches(documents, self.command.batch_size, derive_seed(self.command.seed, "order"))

    def finish(
        self, run: RunDirectory, model: nn.Module, new: Expansion | Adapters | None, router: GradientRouter | None
    ) -> None:
        """Measure the trained model, take the topic out of it, repair, save and attack it, and write the result."""
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
        """What :meth:`finish` does, and the result."""
        command, method = self.command, self.method
        experts = router if method.weights == "experts" else None
        losses = {"trained": self._losses(model, experts)}
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
        """Nats per target on the test documents; of the topic's, also on routed tokens and on all others, None where
        there are none."""
        found = {}
        for kind, batches in self.data.test.items():
            if experts is None:
                found[kind] = evaluate(model, batches)
            else:
                with experts:
                    found[kind] = evaluate(
                        model, batches, lambda batch, on=kind: experts(weights=_one_expert(batch, on))
                    )
        forget = found["forget"]
        routed = np.zeros(len(forget.total), dtype=bool)  # a model may know more tokens than its tokenizer, or fewer
        routed[: len(self.data.routed)] = self.data.routed[: len(routed)]
        parts = {"forget_routed": forget.mean(routed), "forget_rest": forget.mean(~routed)}
        return {
            "forget": forget.mean(),
            "retain": found["retain"].mean(),
            **{name: None if np.isnan(loss) else loss for name, loss in parts.items()},
        }

    def _candidate_losses(self, model: nn.Module) -> np.ndarray | None:
        """The loss of each document that may be chosen for repair; None if none is."""
        return document_losses(model, self.data.batches(self.data.candidates)) if self.data.chosen else None

    def _repaired(self, model: nn.Module, tick: Callable[..., None]) -> nn.Module:
        """The ablated model, fine-tuned on a few documents that are known to be fine."""
        repair, selection = self.command.repair, self.data.batches(self.data.selection)
        settings = FineTuning(repair.steps, repair.learning_rate)

        def measure(tuned: nn.Module) -> dict[str, float]:
            return {"selection": evaluate(tuned, selection).mean()}

        return fine_tune(model, self.data.batches(self.data.repair), settings, measure, tick)[0]

    def _repair_further(self, model: nn.Module, before: np.ndarray, tick: Callable[..., None]) -> None:
        """Train the repaired model on documents that nobody labelled, chosen by how much of them it has lost.

        Args:
            before: losses of the candidates before anything was cut out.
        """
        command, repair = self.command, self.command.repair
        lost = self._candidate_losses(model) - before
        chosen = np.sort(np.argsort(lost)[: self.data.chosen])  # NaN, of those that are no candidates, come last
        source = self.data.batches(chosen, repair.documents, derive_seed(command.seed, "repair order"))
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
        """RMU's objective, for which the model is made ready, and its batches."""
        rmu, seed = self.command.rmu, self.command.seed
        forget, retain = (
            self.data.batches(documents, rmu.batch_size, derive_seed(seed, "rmu", kind))
            for kind, documents in enumerate((self.data.marked, self.data.others))
        )
        direction = derive_seed(seed, "direction")
        method = Rmu(rmu.depth, rmu.norm, rmu.retain_weight, projections=self.command.projections)
        return method.objective(model, direction), ForgetAndRetain(forget, retain)

    def _attack(self, model: nn.Module, documents: int, tick: Callable[..., None]) -> list[list[tuple[float, float]]]:
        """Steps of an attack, from 0 on, each with the topic's loss after it; for each repeat."""
        attack, curves = self.command.attack, []
        settings = FineTuning(attack.steps, attack.learning_rate, attack.every)

        def measure(tuned: nn.Module) -> dict[str, float]:
            return {"forget": evaluate(tuned, self.data.test["forget"]).mean()}

        for repeat in range(attack.repeats):
            chosen = np.random.default_rng(derive_seed(self.command.seed, "attack", documents, repeat))
            batches = self.data.batches(chosen.permutation(self.data.pool)[:documents])
            _, history = fine_tune(model, batches, settings, measure, tick)
            curves.append([(entry["step"], entry["forget"]) for entry in history])
        return curves

    def _samples(self, model: Any, experts: GradientRouter | None = None) -> list[str]:
        """What the model, or its expert of the topic, makes of the beginnings of documents of the topic."""
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


def _one_expert(batch: Any, kind: str) -> dict[str, torch.Tensor]:
    """All of a batch for the expert of the topic, or none of it."""
    labels = torch.full_like(batch.labels, 0 if kind == "forget" else -1)
    return expert_weights(type(batch)(batch.tokens, labels, batch.scored))
