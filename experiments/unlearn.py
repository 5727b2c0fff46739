"""``routed-rl unlearn``: one model, trained, rid of a topic, repaired and attacked; resumable."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import nn

from experiments.errors import UserError, user_input
from experiments.language import Text, check_options, files_identity, make_model, open_text
from experiments.process import check_device, one_thread
from experiments.progress import progress_display
from experiments.text_commands import RUNS, Unlearn
from experiments.workers import is_finished
from routed_rl.lm import (
    Adapters,
    Batches,
    EraObjective,
    Expansion,
    Training,
    add_adapters,
    blocks,
    contract,
    delete_forget,
    distribute,
    document_losses,
    era_weights,
    evaluate,
    expand,
    expert_weights,
    gathered_state,
    mlp,
    other_sites,
    process_group,
    processes,
    rank,
    save_model,
    token_weights,
    train,
)
from routed_rl.lm.era import NEW, ORIGINAL, TABLE
from routed_rl.routing import GradientRouter, LabelNoise
from routed_rl.runs import RunDirectory, config_hash, derive_seed
from routed_rl.unlearning import FineTuning, ForgetAndRetain, RmuObjective, fine_tune

MODEL, RESULT = "model", "evaluation.json"
ATTACK_POOL = 1 / 3
"""Of the topic's held-out documents, how many are for attacks; the others are the test."""
SAMPLES, PROMPT_TOKENS, SAMPLE_TOKENS = 3, 8, 40
COUNTED = 25_000
"""Documents of each kind whose words are counted (gradient routing, section C)."""


@dataclass(frozen=True)
class Method:
    """What a method does with labels; each is a configuration of the same steps."""

    expands: bool = False
    """has units of its own for the topic, which are cut out"""
    weights: str | None = None
    """how units are weighted by label: "era", or "experts" (in mode forward)"""
    drops: bool = False
    """leaves labelled documents out"""
    misdirects: bool = False
    """RMU, after training"""


METHODS: Mapping[str, Method] = {
    "base": Method(),
    "filtering": Method(drops=True),
    "control": Method(expands=True),
    "era": Method(expands=True, weights="era"),
    "demix": Method(expands=True, weights="experts"),
    "rmu": Method(misdirects=True),
}


def main(command: Unlearn) -> None:
    one_thread()
    with ExitStack() as stack:
        with user_input():
            check_device(command.device)
            device = stack.enter_context(process_group(command.device))
            check_options(command, processes())
            pipeline = Pipeline(command, open_text(command), device)
            finished = is_finished(run_path(command)) and not command.force
            if not finished:
                pipeline.check()
            run = stack.enter_context(open_run(command)) if rank() == 0 else None
        if run is None:
            if not finished:
                pipeline.run(None)
        elif run.finished:
            print(f"{run.path} is finished; this is its result (start over with --force)", file=sys.stderr)
        else:
            pipeline.run(run)
        if run is not None and run.result is not None:
            Console().print_json(data=run.result["losses"])
            Console().print(f"Model and result: {run.path}")


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


class Pipeline:
    """The steps of one run: train, ablate, repair, measure, attack.

    Raises:
        ValueError: for options that the corpus, the model or one another do not bear.
    """

    def __init__(self, command: Unlearn, text: Text, device: torch.device | None = None) -> None:
        self.command, self.text, self.method = command, text, METHODS[command.method]
        self.device = device or torch.device("cpu")
        corpus, seed = text.corpus, command.seed
        noise = LabelNoise(command.miss_rate, command.flip_rate)
        self.labelled = corpus.labelled(command.labelled, noise, derive_seed(seed, "labels"))
        self.train = corpus.documents("train")
        self.marked = self.train[self.labelled[self.train]]
        self.others = self.train[~self.labelled[self.train]]
        if command.adapters is not None and not self.method.expands:
            raise ValueError(f"--adapters are for era, control and demix, not for --method {command.method}")
        if self.method.misdirects and not len(self.marked):
            raise ValueError(f"--method {command.method} needs labelled documents, got --labelled {command.labelled}")
        alone = f"--method {command.method}" if self.method.misdirects else "--repair.chosen"
        if processes() > 1 and (self.method.misdirects or (self.method.expands and command.repair.chosen)):
            raise ValueError(f"{alone} is for one process, and there are {processes()}")
        order = np.random.default_rng(derive_seed(seed, "held out"))
        forget = corpus.documents("validation", "forget")
        pool = int(len(forget) * ATTACK_POOL)
        forget = order.permutation(forget)
        self.pool, test = forget[:pool], forget[pool:][: command.test_documents]
        if pool < max(command.attack.documents, default=0):
            raise ValueError(
                f"--attack.documents {max(command.attack.documents)} is more than the {pool} held-out documents of the "
                "topic that are for attacks: take more --documents"
            )
        retain = corpus.documents("validation", "retain")[: command.test_documents]
        self.test = {"forget": self._batches(test), "retain": self._batches(retain)}
        self.prompts = test[:SAMPLES]
        fine = order.permutation(corpus.documents("train", "retain"))
        count = command.repair.documents
        self.repair, self.selection = fine[:count], fine[count : count + command.repair.selection]
        self.token_weight, self.routed = self._token_weights()
        candidates = np.random.default_rng(derive_seed(seed, "repair")).permutation(self.others)
        self.candidates = candidates[: 2 * command.repair.chosen]
        self.chosen = min(command.repair.chosen, len(self.candidates) // 2)
        """how many documents are chosen for repair, of these candidates"""
        self.wrongly_chosen: float | None = None
        """of the documents chosen for repair, the share that is of the topic; nobody sees it but the result"""

    def _token_weights(self) -> tuple[np.ndarray, np.ndarray]:
        """How much the original units learn of each token where it is labelled, ``(V,)`` within 0 … 1; and which tokens
        are reported on as those that are routed, ``(V,)`` bool."""
        corpus, size = self.text.corpus, max(self.text.tokenizer.get_vocab().values()) + 1
        if self.command.tokens or self.command.per == "token":  # they are labelled one by one
            sample = self.train[:COUNTED]
            places = np.concatenate([np.arange(*corpus.starts[document : document + 2]) for document in sample])
            tokens, marks = corpus.tokens[places], corpus.forget[places]
            return np.zeros(size), 2 * np.bincount(tokens[marks], minlength=size) > np.bincount(tokens, minlength=size)
        counts = (corpus.counts(documents[:COUNTED], size) for documents in (self.marked, self.others))
        weight = token_weights(*counts, self.command.bias)
        if self.command.mode == "forward":  # units are silent or not
            weight = np.where(weight < 0.5, 0.0, 1.0)
        return weight, (weight < 0.5) & (len(self.marked) > 0)

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
        if self.method.expands and self.chosen:
            shortest = self.candidates[np.argsort(np.diff(self.text.corpus.starts)[self.candidates])]
            self._batches(shortest[: self.chosen], command.repair.documents)
        for documents in (self.repair, self.selection, *(self.pool[:n] for n in command.attack.documents)):
            self._batches(documents)

    def run(self, run: RunDirectory | None) -> None:
        """Go through the steps; all but training is the first process's alone, which has the run directory."""
        command, method = self.command, self.method
        with user_input():
            model, new = self._model()
            objective = self._objective(model, new)
            source = self._source()
            trained = distribute(model, command.shard)
        total = command.steps + command.rmu.steps * method.misdirects + command.repair.steps * method.expands
        total += command.attack.steps * command.attack.repeats * len(command.attack.documents)
        with progress_display(disable=run is None) as display:
            task = display.add_task(f"{command.method}, {command.labelled:.0%} labelled", total=total)

            def tick(*_: Any) -> None:
                display.advance(task)

            try:
                with objective.router or nullcontext():
                    train(trained, source, self._training(), objective, seed=command.seed, run=run, on_step=tick)
                state = gathered_state(trained)
                if run is not None:
                    if command.shard:  # the parts of what was trained are on all processes
                        model, new = self._model()
                        objective = self._objective(model, new)
                        model.load_state_dict(state)
                    self._finish(run, model, new, objective.router, tick)
            except FloatingPointError as error:
                raise UserError(str(error)) from error

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
            return EraObjective(expansion=expansion, l1=command.l1, restraint=command.restraint)
        sites = new.sites(command.mode)
        if command.whole and expansion is not None:
            sites |= other_sites(model, expansion)
        weights = era_weights(torch.tensor(self.token_weight, dtype=torch.float32), self._alpha())
        router = GradientRouter(model, sites, TABLE, command.mode)
        return EraObjective(router, weights, expansion, command.l1, command.restraint)

    def _alpha(self) -> float:
        command = self.command
        if command.alpha is not None:
            return command.alpha
        if command.whole:
            return -1.0
        return -0.75 if command.mode == "activation" else 0.0

    def _training(self) -> Training:
        names = ("steps", "learning_rate", "warmup", "accumulate", "precision")
        return Training(**{name: getattr(self.command, name) for name in names})

    def _source(self) -> Batches:
        """What is trained on."""
        documents = self.others if self.method.drops else self.train
        return self._batches(documents, self.command.batch_size, derive_seed(self.command.seed, "order"))

    def _batches(self, documents: np.ndarray, batch_size: int | None = None, seed: int | None = None) -> Batches:
        length = self.command.length
        if batch_size is None:  # all of them at once: as many rows as they need, of a length that they fill
            total = int(np.diff(self.text.corpus.starts)[documents].sum())
            length = total // -(-total // (length - 1)) + 1
        return Batches(self.text.corpus, documents, length, batch_size, seed, self.labelled)

    def _finish(
        self,
        run: RunDirectory,
        model: nn.Module,
        new: Expansion | Adapters | None,
        router: GradientRouter | None,
        tick: Callable[..., None],
    ) -> None:
        """Measure the trained model, take the topic out of it, repair, save and attack it, and write the result."""
        command, method = self.command, self.method
        experts = router if method.weights == "experts" else None
        losses = {"trained": self._losses(model, experts)}
        samples = {"trained": self._samples(model, experts)}
        if new is not None:
            before = self._candidate_losses(model)
            if isinstance(new, Adapters):
                model = delete_forget(new)
            else:
                contract(model, new)
            losses["ablated"] = self._losses(model)
            model = self._repaired(model, before, tick)
        if method.misdirects:
            self._misdirect(model, tick)
        losses["finished"] = self._losses(model)
        samples["finished"] = self._samples(model)
        save_model(model, self.text.tokenizer, run.path / MODEL)
        relearning = {str(n): self._attack(model, n, tick) for n in command.attack.documents}
        run.finish(
            {
                "losses": losses,
                "relearning": relearning,
                "samples": samples,
                "labelled_documents": len(self.marked),
                "training_documents": len(self.train),
                "routed_tokens": int(self.routed.sum()),
                "wrongly_chosen": self.wrongly_chosen,
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
            }
        )

    def _losses(self, model: nn.Module, experts: GradientRouter | None = None) -> dict[str, float | None]:
        """Nats per target on the test documents; of the topic's, also on routed tokens and on all others, None where
        there are none."""
        found = {}
        for kind, batches in self.test.items():
            if experts is None:
                found[kind] = evaluate(model, batches)
            else:
                with experts:
                    found[kind] = evaluate(
                        model, batches, lambda batch, on=kind: experts(weights=_one_expert(batch, on))
                    )
        forget = found["forget"]
        routed = np.zeros(len(forget.total), dtype=bool)  # a model may know more tokens than its tokenizer, or fewer
        routed[: len(self.routed)] = self.routed[: len(routed)]
        parts = {"forget_routed": forget.mean(routed), "forget_rest": forget.mean(~routed)}
        return {
            "forget": forget.mean(),
            "retain": found["retain"].mean(),
            **{name: None if np.isnan(loss) else loss for name, loss in parts.items()},
        }

    def _candidate_losses(self, model: nn.Module) -> np.ndarray | None:
        """The loss of each document that may be chosen for repair; None if none is."""
        return document_losses(model, self._batches(self.candidates)) if self.chosen else None

    def _repaired(self, model: nn.Module, before: np.ndarray | None, tick: Callable[..., None]) -> nn.Module:
        """The ablated model, fine-tuned on what it should still do.

        Args:
            before: losses of the candidates before anything was cut out.
        """
        repair = self.command.repair
        if before is not None:
            risen = self._candidate_losses(model) - before
            chosen = np.sort(np.argsort(risen)[: self.chosen])  # NaN, of those that are no candidates, come last
            source = self._batches(chosen, repair.documents, derive_seed(self.command.seed, "repair order"))
            training = Training(repair.steps, repair.learning_rate, warmup=0)
            train(model, source, training, seed=derive_seed(self.command.seed, "repair"), on_step=tick)
            self.wrongly_chosen = float(self.text.corpus.to_forget[chosen].mean())
            return model
        selection = self._batches(self.selection)
        settings = FineTuning(repair.steps, repair.learning_rate)

        def measure(tuned: nn.Module) -> dict[str, float]:
            return {"selection": evaluate(tuned, selection).mean()}

        return fine_tune(model, self._batches(self.repair), settings, measure, tick)[0]

    def _misdirect(self, model: nn.Module, tick: Callable[..., None]) -> None:
        rmu, seed = self.command.rmu, self.command.seed
        objective, source = self._rmu(model)
        training = Training(rmu.steps, rmu.learning_rate, warmup=0, final=1.0)
        train(model, source, training, objective, seed=seed, on_step=tick)
        model.requires_grad_(True)

    def _rmu(self, model: nn.Module) -> tuple[RmuObjective, ForgetAndRetain]:
        """RMU's objective, for which the model is made ready, and its batches."""
        rmu, seed = self.command.rmu, self.command.seed
        forget, retain = (
            self._batches(documents, rmu.batch_size, derive_seed(seed, "rmu", kind))
            for kind, documents in enumerate((self.marked, self.others))
        )
        direction = derive_seed(seed, "direction")
        objective = RmuObjective(model, rmu.depth, rmu.norm, rmu.retain_weight, direction, self.command.projections)
        return objective, ForgetAndRetain(forget, retain)

    def _attack(self, model: nn.Module, documents: int, tick: Callable[..., None]) -> list[list[float]]:
        """The topic's loss before an attack and after each of its steps, for each repeat."""
        attack, curves = self.command.attack, []

        def measure(tuned: nn.Module) -> dict[str, float]:
            return {"forget": evaluate(tuned, self.test["forget"]).mean()}

        for repeat in range(attack.repeats):
            chosen = np.random.default_rng(derive_seed(self.command.seed, "attack", documents, repeat))
            batches = self._batches(chosen.permutation(self.pool)[:documents])
            _, history = fine_tune(model, batches, FineTuning(attack.steps, attack.learning_rate), measure, tick)
            curves.append([entry["forget"] for entry in history])
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
            for document in self.prompts:
                begin, end = corpus.starts[document : document + 2]
                begun = corpus.tokens[begin : min(begin + PROMPT_TOKENS, begin + length - 1, end)].astype(np.int64)
                prompt = torch.from_numpy(begun)[None].to(model.device)
                torch.manual_seed(derive_seed(self.command.seed, "sample", int(document)))
                new = min(SAMPLE_TOKENS, length - prompt.shape[1])
                made = model.generate(prompt, do_sample=True, temperature=0.8, max_new_tokens=new, top_k=0)
                samples.append(tokenizer.decode(made[0], skip_special_tokens=True))
        return samples


def _one_expert(batch: Any, kind: str) -> dict[str, torch.Tensor]:
    """All of a batch for the expert of the topic, or none of it."""
    labels = torch.full_like(batch.labels, 0 if kind == "forget" else -1)
    return expert_weights(type(batch)(batch.tokens, labels, batch.scored))
