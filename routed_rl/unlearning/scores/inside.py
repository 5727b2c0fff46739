"""What is inside a model while it reads: the residual stream after each block.

``L`` blocks, ``D`` residual dimensions, ``K`` tokens that state the fact. What the models of this file read are the
examples of a :class:`Reader`, with the changes of its attacker.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from routed_rl.lm.losses import promoted
from routed_rl.lm.streams import outputs
from routed_rl.lm.structure import before_output, blocks
from routed_rl.unlearning.benchmarks.benchmark import Example
from routed_rl.unlearning.scores.reader import Reader, Tokens, evaluating, predictions


def last_states(reader: Reader, examples: Sequence[Example], answers: Sequence[str]) -> np.ndarray:
    """Return the residual stream at the last token of each answer's text, after each block, ``(examples, L, D)``.

    Args:
        reader: the model.
        examples: with an answer for each.
        answers: right or wrong ones.
    """
    documents = reader.encoded(examples, answers)
    modules = _blocks(reader.model)
    found: dict[int, np.ndarray] = {}
    for rows, tokens in reader.batches(documents):
        with evaluating(reader.model), outputs(*modules) as streams:
            reader.model(input_ids=tokens, use_cache=False)
        for place, i in enumerate(rows):
            text = documents[i].scored & ~np.isin(documents[i].tokens, reader.special)
            last = int((text if text.any() else documents[i].scored).nonzero()[0][-1])
            found[i] = torch.stack([promoted(stream[place, last]) for stream in streams]).cpu().numpy()
    return np.stack([found[i] for i in range(len(documents))])


def lens(reader: Reader, examples: Sequence[Example]) -> list[list[Tokens]]:
    """Return what each block's stream says of the tokens that state the fact, through the final norm and unembedding.

    The last block gives the model's own logits. Where a model scales its logits (Granite) or caps them (Gemma 2), the
    scale and the cap are left out, which keeps the order of tokens.

    Returns:
        For each example, one for each block.
    """
    documents = reader.keys(examples)
    model: Any = reader.model
    head = [*map(model.get_submodule, before_output(model)), model.get_output_embeddings()]
    found: dict[int, list[Tokens]] = {}
    for rows, tokens in reader.batches(documents):
        with evaluating(model), outputs(*_blocks(model)) as streams:
            model(input_ids=tokens, use_cache=False)
            for place, i in enumerate(rows):
                keys = documents[i].scored.nonzero()[0]
                said = []
                for stream in list(streams[: len(blocks(model))]):
                    through = stream[place, keys - 1]
                    for module in head:
                        through = module(through)
                    said.append(predictions(through, tokens[place, keys]))
                found[i] = said
    return [found[i] for i in range(len(documents))]


def losses_by_patching(reader: Reader, source: nn.Module, examples: Sequence[Example]) -> np.ndarray:
    """Return how much less likely the fact becomes if a block's stream is that of another model, ``(examples, L)``.

    At the places that predict the fact, and only there, the stream after one block is replaced by that of ``source``.
    The number is the mean log-probability of the fact's tokens without the patch minus that with it, in nats.

    Args:
        reader: the model that is patched.
        source: a model of the same architecture.
        examples: those that are read.
    """
    documents = reader.keys(examples)
    targets, sources = _blocks(reader.model), _blocks(source)
    lost = np.empty((len(documents), len(targets)))
    for rows, tokens in reader.batches(documents):
        places = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
        for place, i in enumerate(rows):
            places[place, documents[i].scored.nonzero()[0] - 1] = True
        with evaluating(source), outputs(*sources) as streams:
            source(input_ids=tokens, use_cache=False)
        plain = _of_keys(reader.model, tokens, places)
        for layer, (block, stream) in enumerate(zip(targets, streams, strict=True)):
            with ExitStack() as stack:
                stack.callback(block.register_forward_hook(_patch(places, stream)).remove)
                lost[rows, layer] = plain - _of_keys(reader.model, tokens, places)
    return lost


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [model.get_submodule(name) for name in blocks(model)]


def _patch(places: Tensor, stream: Tensor) -> Any:
    def replaced(own: Tensor) -> Tensor:
        return torch.where(places[..., None], stream.to(own), own)

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return replaced(output) if isinstance(output, Tensor) else (replaced(output[0]), *output[1:])

    return hook


def _of_keys(model: nn.Module, tokens: Tensor, places: Tensor) -> np.ndarray:
    """Return the mean log-probability of the tokens after the places of each row, ``(B,)``."""
    with evaluating(model):
        logits = model(input_ids=tokens, use_cache=False).logits
    found = []
    for own, of, at in zip(tokens, logits, places, strict=True):
        where = at.nonzero()[:, 0]
        found.append(predictions(of[where], own[where + 1]).log_probability.mean())
    return np.array(found)
