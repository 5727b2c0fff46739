"""Small trainings: models of a few thousand parameters on generated stories, with and without a router."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig

from routed_rl.lm import throughput, training
from routed_rl.lm.batches import Batches
from routed_rl.lm.corpora import Corpus, build_corpus
from routed_rl.lm.era import TABLE, EraObjective, era_weights, expand
from routed_rl.lm.finders import find_topic
from routed_rl.lm.losses import next_token_loss
from routed_rl.lm.models import build_model
from routed_rl.lm.processes import distribute, gathered_state
from routed_rl.lm.stories import FORGET, generate_stories, stories_tokenizer
from routed_rl.lm.training import Objective, Training, train
from routed_rl.routing import GradientRouter
from routed_rl.routing.site import Mode
from routed_rl.runs import RunDirectory
from routed_rl.unlearning import Sam

TOKENIZER = stories_tokenizer()
VOCABULARY = len(TOKENIZER)
# Rows are shorter than stories, so some have more scored targets than others.
LENGTH, ROWS, STEPS, SEED = 28, 8, 8, 3


def make_corpus(folder: Path) -> Corpus:
    return build_corpus(folder, generate_stories(300, seed=0), TOKENIZER, find_topic(FORGET))


def make_batches(corpus: Corpus, seed: int = 0) -> Batches:
    return Batches(corpus, corpus.documents("train"), LENGTH, ROWS, seed=seed, labelled=corpus.labelled(0.8))


def make_llama(dtype: torch.dtype = torch.float64, **settings: object) -> nn.Module:
    """Return a Llama model with two layers of width 16."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        **settings,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).to(dtype)


@dataclass(frozen=True)
class Case:
    """A training that gives the same weights on one process and on many."""

    model: str = "llama"
    dtype: torch.dtype = torch.float64
    tied: bool = False
    accumulate: int = 1
    mode: Mode | None = None
    l1: float = 0.0
    late: bool = False
    """whether the router is attached after the model is distributed"""
    rho: float | None = None
    """how far uphill gradients are taken (SAM); None: at the current weights"""

    def train(
        self,
        corpus: Corpus,
        shard: bool = False,
        run: RunDirectory | None = None,
        on_step: Callable[[nn.Module, int], object] = lambda model, step: None,
    ) -> dict[str, Tensor]:
        """Return the weights at the end, on the first process."""
        if self.model == "llama":
            model = make_llama(self.dtype, tie_word_embeddings=self.tied)
        else:
            model = build_model(self.model, TOKENIZER, 0).to(self.dtype)
        objective: Objective = next_token_loss
        with ExitStack() as attached:
            if self.mode is not None:
                expansion = expand(model, [0, 1], 8, seed=1)
                router = GradientRouter(model, expansion.sites(self.mode), TABLE, self.mode)
                weights = era_weights(torch.linspace(0, 1, VOCABULARY), alpha=-0.5)
                objective = EraObjective(router, weights, expansion, self.l1)
                if not self.late:
                    attached.enter_context(router)
            distributed = distribute(model, shard)
            if self.mode is not None and self.late:
                attached.enter_context(router)
            settings = Training(steps=STEPS, learning_rate=2e-2, warmup=3, accumulate=self.accumulate)
            train(
                distributed,
                make_batches(corpus),
                settings,
                objective,
                gradient=(lambda model, compute: compute()) if self.rho is None else Sam(rho=self.rho).gradient,
                seed=SEED,
                run=run,
                on_step=lambda step: on_step(distributed, step),
            )
        return gathered_state(distributed)


CASES = {
    "float32": Case(dtype=torch.float32),
    "activations": Case(accumulate=2, mode="activation", l1=0.01),
    "parameters, tied": Case(tied=True, mode="parameter", late=True),
    "uphill": Case(accumulate=2, rho=0.1),
    "preset": Case("tiny"),
}
LOGGED, STOPPED_AT = 2, 6
"""Steps from one log to the next, and the step in which a training is stopped: after a log and a checkpoint."""


class Stopped(Exception):
    """A training was interrupted."""


def stop(model: nn.Module, step: int) -> None:
    if step == STOPPED_AT:
        raise Stopped


def open_run(folder: Path) -> RunDirectory:
    return RunDirectory.open(folder, {"of": "a case"}, SEED)


def log_often(patch: pytest.MonkeyPatch, every: int = 5) -> None:
    """Log after so many steps, write a checkpoint at every second log, and do not measure the machine's speed."""
    patch.setattr(throughput, "SECONDS", 0.0)
    patch.setattr(training, "LOG_EVERY", every)
    patch.setattr(training, "CHECKPOINT_EVERY", 2)
