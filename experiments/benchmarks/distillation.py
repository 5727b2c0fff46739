"""Time and memory of a distillation step, compared with the usual KL divergence with three softmaxes."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from routed_rl.experiments.benchmarks.timing import take_turns
from routed_rl.lm import Batch
from routed_rl.unlearning import DistillationObjective

ROWS, LENGTH, WIDTH, LAYERS, VOCABULARY = 8, 512, 256, 2, 32768
PLAIN, OURS = "three softmaxes", "ours"
Objective = Callable[[nn.Module, Batch], Tensor]
"""The summed loss of a model on a batch."""


def calls(repeats: int) -> int:
    """How many measurements :func:`measure` makes."""
    return 2 * (repeats + 1)


def measure(repeats: int, tick: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Time and peak memory of one step, forward and backward, by form of the loss.

    Both are also given relative to the plain form. Memory is what the step allocates besides the models. The gradient
    difference is the largest difference from the gradient of the plain form. It is relative to the largest entry of the
    gradient of each parameter.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        student, teacher = (AutoModelForCausalLM.from_config(config) for _ in range(2))
        tokens = torch.randint(0, VOCABULARY, (ROWS, LENGTH))
    batch = Batch(tokens, torch.full_like(tokens, -1), torch.ones(ROWS, LENGTH - 1, dtype=torch.bool))
    objectives: dict[str, Objective] = {PLAIN: partial(_plain, teacher), OURS: DistillationObjective(teacher)}
    cases = {name: partial(_step, copy.deepcopy(student), of, batch) for name, of in objectives.items()}
    measured = take_turns({name: (1, case) for name, case in cases.items()}, repeats, tick)
    peaks = {name: peak_memory(case) for name, case in cases.items()}
    slopes = {name: case() for name, case in cases.items()}
    return {
        name: {
            "milliseconds": 1000 * row.median,
            "times_plain": row.median / measured[PLAIN].median,
            "peak_megabytes": peaks[name] / 2**20,
            "peak_times_plain": peaks[name] / peaks[PLAIN],
            "gradient_difference": _largest_difference(slopes[name], slopes[PLAIN]),
        }
        for name, row in measured.items()
    }


def _step(model: nn.Module, objective: Objective, batch: Batch) -> dict[str, Tensor]:
    """The gradients of one step, by parameter. The gradients of the model are then cleared."""
    (objective(model, batch) / batch.scored.sum()).backward()
    slopes = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    return slopes


def _plain(teacher: nn.Module, student: nn.Module, batch: Batch) -> Tensor:
    """The summed divergence in its usual form."""
    with torch.no_grad():
        of_teacher = teacher(**batch.inputs).logits[:, :-1]
        p, log_p = of_teacher.softmax(-1), of_teacher.log_softmax(-1)
    log_q = student(**batch.inputs).logits[:, :-1].log_softmax(-1)
    divergence: Tensor = (p * (log_p - log_q)).sum(-1)[batch.scored].sum()
    return divergence


def _largest_difference(slopes: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> float:
    return max(float((slopes[name] - other).abs().max() / other.abs().max()) for name, other in others.items())


def peak_memory(call: Callable[[], object]) -> int:
    """Peak of the bytes that a call allocates in torch on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_bytes())["traceEvents"]
    memory = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event.get("name") == "[memory]")
    return max(accumulate((size for _, size in memory), initial=0))
