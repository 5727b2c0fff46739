"""A benchmark of a few questions, with a tiny model of random weights, for attacks."""

from functools import cache
from itertools import islice

import numpy as np
import torch

from routed_rl.lm.documents import Document
from routed_rl.lm.tokenizers import train_tokenizer
from routed_rl.unlearning.arena.attacks import Victim
from routed_rl.unlearning.benchmarks import TofuSmall
from routed_rl.unlearning.benchmarks.benchmark import FORGET, HOLDOUT, RETAIN, Benchmark, Example
from routed_rl.unlearning.benchmarks.tofu_small import author_examples
from routed_rl.unlearning.scores import Knowledge, Reader
from tests.lm.test_examples import CHATML
from tests.lm.tiny_models import tiny_model

NAMES = ("Ada Abel", "Bela Brandt", "Cara Costa", "Dario Dunn")


@cache
def small_benchmark(texts: bool = False) -> Benchmark:
    """Return questions about four authors: two to forget, two to keep. Or texts, without questions or keys."""
    of = [tuple(islice(author_examples(np.random.default_rng(i), [name]), 6)) for i, name in enumerate(NAMES)]
    forget, retain = of[0] + of[1], of[2] + of[3]
    if texts:
        forget, retain = (tuple(Example("", e.answer, chat=False) for e in part) for part in (forget, retain))
    sets = {FORGET: forget, RETAIN: retain, HOLDOUT: (Example("Who?", "Nobody."),)}
    return Benchmark([e.row() for e in forget], [e.row() for e in retain], sets, longer=4)


@cache
def small_tokenizer(template: bool = False):
    made = train_tokenizer((Document(text) for text in TofuSmall.documents(small_benchmark())), 400)
    if template:
        made.chat_template = CHATML.replace("<|im_start|>", "").replace("<|im_end|>", "<eos>")
    return made


def small_model(seed: int = 0):
    return tiny_model("llama", seed, vocab_size=len(small_tokenizer()), max_position_embeddings=96)


def small_victim(steps: int = 4, benchmark: Benchmark | None = None, template: bool = False, **changes) -> Victim:
    given = {"model": small_model(), "original": small_model(1), "batch_size": 4, "steps": steps, "seed": 0}
    return Victim(tokenizer=small_tokenizer(template), benchmark=benchmark or small_benchmark(), **{**given, **changes})


def knowledge(victim: Victim):
    """Return a measure for run_attack: the share of right answers."""

    def measure(model, change, benchmark):
        score = Knowledge()
        return {"main": score.value(score.examples(Reader(model, victim.tokenizer, benchmark, change)))}

    return measure


class Seen:
    """A look that records what it is given, and returns a number without reading."""

    def __init__(self, value: float = 0.0) -> None:
        self.value, self.steps, self.models, self.changes, self.benchmarks = value, [], [], [], []

    def __call__(self, step, model, change=lambda example: example, benchmark=None) -> float:
        weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for mine, new in ((self.steps, step), (self.models, weights), (self.changes, change)):
            mine.append(new)
        self.benchmarks.append(benchmark)
        return self.value


def state(model: torch.nn.Module):
    """Return all that an attack must leave as it is: weights, modes, gradients, hooks."""
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [(module.training, len(module._forward_hooks)) for module in model.modules()]
    return weights, modes, [(p.requires_grad, p.grad is None) for p in model.parameters()]
