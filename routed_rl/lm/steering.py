"""A steering scalar (gradient routing, section 4.2.1): one token may teach only one dimension of the residual stream.

The rule holds wherever the token is the target. The dimension comes to represent what the token is about.

``B`` rows, ``T`` tokens a row, ``V`` tokens of the vocabulary, ``D`` dimensions of the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from routed_rl.lm.batches import Batch, WholeDocuments
from routed_rl.lm.losses import measured, next_token_loss
from routed_rl.lm.structure import blocks
from routed_rl.routing import UNLABELLED, GradientRouter, RouteTable, Site
from routed_rl.routing.attachment import as_hook

REST = "rest"


def find_blocks(model: nn.Module, numbers: Sequence[int]) -> list[str]:
    """Return the names of the model's blocks with these numbers, from 0.

    Raises:
        ValueError: for no numbers, a repeated one, or a block that does not exist. The message gives the range.
    """
    names = blocks(model)
    if not numbers or not set(numbers) <= set(range(len(names))) or len(set(numbers)) < len(numbers):
        raise ValueError(f"blocks must be some of 0 … {len(names) - 1}, each once, got {list(numbers)}")
    return [names[number] for number in numbers]


def steering_router(model: nn.Module, tokens: Sequence[int], numbers: Sequence[int]) -> GradientRouter:
    """Return a router that gives each token an axis, a dimension of the residual stream.

    The first token gets dimension 0, the second dimension 1, and so on. Where such a token is the target, no other
    dimension learns at the output of the chosen blocks. All other targets teach every dimension.

    The blocks after the last chosen one (in section 4.2.1 one block of 20), the final norm and the unembedding learn
    from all tokens.

    Args:
        tokens: ids of the tokens to route.
        numbers: the chosen blocks, as for :func:`find_blocks`.

    Raises:
        ValueError: as :func:`find_blocks`, or for no tokens or a repeated one.
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
    """The loss of routed training: next-token loss, where each routed token teaches only its axis.

    Args:
        router: from :func:`steering_router`, attached to the model by a ``with`` statement.
        tokens: the same ids as the router's.
        vocabulary: the number of tokens in the vocabulary, ``V``.
    """

    def __init__(self, router: GradientRouter, tokens: Sequence[int], vocabulary: int) -> None:
        self.router = router
        self._label = torch.full((vocabulary,), router.table.label_id(UNLABELLED))
        self._label[list(tokens)] = torch.arange(len(tokens))

    def labels(self, batch: Batch) -> Tensor:
        """Return ``(B, T)``: which of the routed tokens is the target at each position, -1 for any other target."""
        self._label = self._label.to(batch.tokens.device)
        return batch.at_positions(self._label[batch.targets], self.router.table.label_id(UNLABELLED))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.router(self.labels(batch)):
            return next_token_loss(model, batch)


@torch.no_grad()
def axis_cosines(model: nn.Module, axis: int, token: int) -> tuple[Tensor, int]:
    """Return how much each token's unembedding ``U`` points along an axis (section 4.2.1)::

        score_i = sign · U[i, axis] / ||U[i]||

    The direction of an axis is arbitrary and differs between runs. The sign makes the score of ``token`` positive.

    Returns:
        The scores, ``(V,)`` on the CPU, and the sign, 1 or -1.
    """
    unembedding: Tensor = model.get_output_embeddings().weight.float().cpu()  # type: ignore[operator]
    cosines = unembedding[:, axis] / unembedding.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    sign = -1 if cosines[token] < 0 else 1
    return sign * cosines, sign


def top_tokens(cosines: Tensor, count: int) -> list[int]:
    """Return the ids of the tokens with the largest scores, largest first."""
    return cosines.topk(min(count, len(cosines))).indices.tolist()  # type: ignore[no-any-return]


@contextmanager
def steered(model: nn.Module, number: int, axis: int, strength: float) -> Iterator[None]:
    """Add ``strength`` to one dimension of the residual stream, after one block of the model and at every position.

    This lasts for the body of the ``with`` statement. A copy of the model that is made there is not steered.

    Args:
        number: of the model's block, from 0.
        axis: the dimension.

    Raises:
        ValueError: for a block or dimension that the model does not have.
    """
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[operator]
    if not 0 <= axis < width:
        raise ValueError(f"axis must be a dimension of the residual stream, 0 … {width - 1}, got {axis}")
    (name,) = find_blocks(model, [number])

    def add(module: nn.Module, args: Any, output: Any) -> Any:
        first = output[0] if isinstance(output, tuple) else output
        moved = first.clone()
        moved[..., axis] += strength
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    handle = model.get_submodule(name).register_forward_hook(as_hook(add))
    try:
        yield
    finally:
        handle.remove()


def mean_probabilities(model: nn.Module, documents: WholeDocuments) -> Tensor:
    """Return ``(V,)`` on the CPU: the mean probability of each token as the next one, at scored positions."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    with measured(model, documents) as batches:
        for batch, _ in batches:
            logits = model(**batch.inputs).logits[:, :-1][batch.scored]
            total = total + logits.float().softmax(dim=-1).sum(dim=0).cpu().double()
            count += len(logits)
    return total / count


@torch.no_grad()
def samples(model: Any, tokenizer: Any, count: int, length: int, seed: int, top_k: int = 200) -> list[str]:
    """Return texts that the model writes after the token that begins a text, at temperature 1.

    Args:
        count: number of texts.
        length: new tokens in each text.
        seed: fixes the texts, on the same device.
        top_k: each token is drawn from this many most likely ones (section D).
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
