"""A steering scalar (gradient routing, section 4.2.1): a token, wherever it is to be predicted, may teach one dimension
of the residual stream alone, and the dimension comes to stand for what the token is about.

``B`` rows, ``T`` tokens a row, ``V`` tokens of the vocabulary, ``D`` dimensions of the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import Batch, Batches
from routed_rl.lm.losses import next_token_loss
from routed_rl.lm.models import blocks
from routed_rl.routing import UNLABELLED, GradientRouter, RouteTable, Site

REST = "rest"
EVALUATION_ROWS = 16
"""Rows whose probabilities are computed at a time."""


def find_blocks(model: nn.Module, numbers: Sequence[int]) -> list[str]:
    """The names of a model's blocks with these numbers, from 0.

    Raises:
        ValueError: for no numbers, one twice, or a block that there is not, naming those there are.
    """
    names = blocks(model)
    if not numbers or not set(numbers) <= set(range(len(names))) or len(set(numbers)) < len(numbers):
        raise ValueError(f"blocks must be some of 0 … {len(names) - 1}, each once, got {list(numbers)}")
    return [names[number] for number in numbers]


def steering_router(model: nn.Module, tokens: Sequence[int], numbers: Sequence[int]) -> GradientRouter:
    """A router that leaves each token an axis: dimension 0 of the residual stream to the first, 1 to the second, …; no
    other dimension, at the output of the chosen blocks, learns from predicting it. All other targets teach everything.

    The blocks after the last of these, the final norm and the unembedding learn from all tokens (section 4.2.1 leaves
    one block of 20).

    Args:
        tokens: ids.
        numbers: of the blocks, as for :func:`find_blocks`.

    Raises:
        ValueError: as :func:`find_blocks`, or for no tokens or one twice.
    """
    if not tokens or len(set(tokens)) < len(tokens):
        raise ValueError(f"at least one token must be routed, each once, got {list(tokens)}")
    axes = [f"axis {i}" for i in range(len(tokens))]
    columns = (*axes, REST)
    routes = {f"token {i}": {column: 0.0 for column in columns if column != axes[i]} for i in range(len(tokens))}
    units = {**{axis: slice(i, i + 1) for i, axis in enumerate(axes)}, REST: slice(len(tokens), None)}
    sites = {
        f"{name} {column}": Site("output", units[column], module=name, column=column)
        for name in find_blocks(model, numbers)
        for column in columns
    }
    return GradientRouter(model, sites, RouteTable(routes, columns))


class SteeringObjective:
    """The loss of routed training: next tokens, each target's gradient where its token belongs.

    Args:
        router: of :func:`steering_router`, entered.
        tokens: the same as the router's.
        vocabulary: how many tokens there are, ``V``.
    """

    def __init__(self, router: GradientRouter, tokens: Sequence[int], vocabulary: int) -> None:
        self.router = router
        self._label = torch.full((vocabulary,), router.table.label_id(UNLABELLED))
        self._label[list(tokens)] = torch.arange(len(tokens))

    def labels(self, batch: Batch) -> Tensor:
        """``(B, T)``: which routed token is to be predicted at a position, -1 for any other."""
        self._label = self._label.to(batch.tokens.device)
        return batch.at_positions(self._label[batch.targets], self.router.table.label_id(UNLABELLED))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.router(self.labels(batch)):
            return next_token_loss(model, batch)


@torch.no_grad()
def axis_cosines(model: nn.Module, axis: int, token: int) -> tuple[Tensor, int]:
    """How much each token's unembedding ``U`` points along an axis (section 4.2.1)::

        score_i = sign · U[i, axis] / ||U[i]||

    Which way the axis points is arbitrary, and differs from run to run; the sign is such that ``token`` is positive.

    Returns:
        ``(V,)`` on the CPU, and the sign, 1 or -1.
    """
    unembedding: Tensor = model.get_output_embeddings().weight.float().cpu()  # type: ignore[operator]
    cosines = unembedding[:, axis] / unembedding.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    sign = -1 if cosines[token] < 0 else 1
    return sign * cosines, sign


def top_tokens(cosines: Tensor, count: int) -> list[int]:
    """The ids of the tokens with the largest scores, the largest first."""
    return cosines.topk(min(count, len(cosines))).indices.tolist()  # type: ignore[no-any-return]


@contextmanager
def steered(model: nn.Module, number: int, axis: int, strength: float) -> Iterator[None]:
    """Within the block, ``strength`` is added to a dimension of the residual stream behind a block, at every position.

    Raises:
        ValueError: for a block or dimension that the model does not have.
    """
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    if not 0 <= axis < width:
        raise ValueError(f"the residual stream has dimensions 0 … {width - 1}, got {axis}")
    (name,) = find_blocks(model, [number])

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        moved = first.clone()
        moved[..., axis] += strength
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = model.get_submodule(name).register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def mean_probabilities(model: nn.Module, batches: Batches) -> Tensor:
    """``(V,)``: the probability of each token as the next one, over an epoch's scored positions; on the CPU."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    total, count = torch.zeros((), dtype=torch.float64), 0
    for whole in batches.epoch():
        for start in range(0, len(whole), EVALUATION_ROWS):
            batch = whole.rows(slice(start, start + EVALUATION_ROWS)).to(device)
            logits = model(input_ids=batch.tokens, use_cache=False).logits[:, :-1][batch.scored]
            total = total + logits.float().softmax(dim=-1).sum(dim=0).cpu().double()
            count += len(logits)
    model.train(training)
    return total / count


@torch.no_grad()
def samples(model: Any, tokenizer: Any, count: int, length: int, seed: int, top_k: int = 200) -> list[str]:
    """Texts that the model writes after the token that begins one, at temperature 1.

    Args:
        length: tokens of each, the first not counted.
        seed: fixes them, on the same device.
        top_k: the most likely tokens, of which the next is drawn (section D).
    """
    training = model.training
    model.eval()
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    device = next(model.parameters()).device
    prompts = torch.full((count, 1), first, device=device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        written = model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            do_sample=True,
            temperature=1.0,
            top_k=top_k,
            max_new_tokens=length,
            pad_token_id=tokenizer.eos_token_id,
        )
    model.train(training)
    return [tokenizer.decode(row[1:], skip_special_tokens=True) for row in written]
