"""Expand, Route, Ablate (gradient routing, section 4.2.2): new hidden units learn from labelled forget documents, and
are then removed.

``B`` rows, ``T`` tokens a row, ``V`` tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from routed_rl.lm.batches import FORGET_LABEL, Batch
from routed_rl.lm.losses import next_token_loss
from routed_rl.lm.processes import undistributed
from routed_rl.lm.structure import blocks, mlp
from routed_rl.routing import GradientRouter, Hidden, RouteTable, Site, add_units, remove_units
from routed_rl.routing.layers import linear_weight
from routed_rl.routing.site import Mode

NEW, ORIGINAL = "new", "original"
TABLE = RouteTable({"forget": {ORIGINAL: 0.0}}, (NEW, ORIGINAL))
"""The columns' names. The weights themselves are computed for each token."""


def token_weights(forget: np.ndarray, retain: np.ndarray, bias: float = 4.0) -> np.ndarray:
    """Return the weight with which the original units learn each token of a forget document.

    The formula is from gradient routing, section C::

        f_forget ∝ forget + 1      f_retain ∝ retain + 20      r = f_forget / f_retain
        w = 1 − sigmoid(r − 1 / r − bias)

    The weight is about 1 for words that are as frequent in other documents, and about 0 for the topic's own words.

    Args:
        forget: ``(V,)``: how often each token occurs in documents with the label "forget".
        retain: ``(V,)``: how often each token occurs in all other documents.
        bias: a lower bias lowers the weights, so more words are left to the new units.

    Returns:
        ``(V,)`` within 0 … 1.
    """
    frequency, elsewhere = forget + 1.0, retain + 20.0
    ratio = (frequency / frequency.sum()) / (elsewhere / elsewhere.sum())
    return np.asarray(1 / (1 + np.exp(np.clip(ratio - 1 / ratio - bias, -500, 500))))


@dataclass(frozen=True)
class Expansion:
    """Hidden units that were added to a model.

    Attributes:
        hidden: the expanded layers, by the number of their block.
        units: the new units of each of these layers.
    """

    hidden: Mapping[int, Hidden]
    units: Mapping[int, slice]

    def sites(self, mode: Mode) -> dict[str, Site]:
        """Return the sites where new and original units are routed.

        The sites are the units' activations. In mode "parameter" they are the parameters into and out of the units.
        """
        sites = {}
        for layer, hidden in self.hidden.items():
            new = self.units[layer]
            for column, units in ((NEW, new), (ORIGINAL, slice(0, new.start))):
                sites[f"{layer}.{column}"] = Site("input", units, module=hidden.consumer, column=column)
                if mode == "parameter":
                    outputs = hidden.outputs(units, new.stop)
                    for name in hidden.producers:
                        sites[f"{layer}.{column}.{name}"] = Site("output", outputs, module=name, column=column)
        return sites


def expand(
    model: nn.Module, layers: Sequence[int], units: int | None, seed: int, projections: str | None = None
) -> Expansion:
    """Add hidden units to the MLPs of some layers, in place. At first the model computes the same as before.

    The new units' input weights are drawn with the standard deviation of the original ones. So the new units do not
    learn faster than the original units what all documents teach.

    Args:
        layers: numbers of the blocks, from 0.
        units: how many new units in each layer. None: as many as there are already.
        seed: fixes the new weights.
        projections: as for :func:`~routed_rl.lm.mlp`.

    Raises:
        ValueError: for layers that the model does not have, or as :func:`~routed_rl.lm.mlp` and
            :func:`~routed_rl.routing.add_units`.
    """
    depth = len(blocks(model))
    if not layers or not set(layers) <= set(range(depth)) or len(set(layers)) < len(layers):
        raise ValueError(f"layers must be some of 0 … {depth - 1}, each once, got {list(layers)}")
    hidden = {layer: mlp(model, layer, projections) for layer in layers}
    generator = torch.Generator().manual_seed(seed)
    added = {
        layer: add_units(model, place, place.width(model) if units is None else units, generator)
        for layer, place in hidden.items()
    }
    with torch.no_grad():
        for layer, place in hidden.items():
            whole = added[layer].stop
            old, new = (place.outputs(of, whole) for of in (slice(0, added[layer].start), added[layer]))
            for module in map(model.get_submodule, place.producers):
                weight = linear_weight(module)
                drawn = torch.randn(weight[new].shape, generator=generator) * weight[old].std().cpu()
                weight[new] = drawn.to(weight)
                if module.bias is not None:
                    module.bias[new] = 0.0  # type: ignore[index,operator]
    return Expansion(hidden, added)


def ablate(model: nn.Module, expansion: Expansion) -> None:
    """Remove the new units and all that they learned, in place. The model has its old shapes again."""
    for layer, hidden in expansion.hidden.items():
        remove_units(model, hidden, expansion.units[layer])


class EraObjective:
    """The loss of routed training: next-token loss, plus an L1 penalty on hidden activations before they are routed.

    Args:
        router: routes the expansion's sites. None: nothing is routed.
        weights: gives a batch's weights by column, ``(B, T)`` each. Needed with a router.
        expansion: the layers under the penalty. None: no penalty, as for low-rank adapters, which have no hidden units.
        l1: weight of the L1 norm of all hidden activations of the expanded layers, per token (gradient routing,
            section C).
    """

    def __init__(
        self,
        router: GradientRouter | None = None,
        weights: Callable[[Batch], Mapping[str, Tensor]] | None = None,
        expansion: Expansion | None = None,
        l1: float = 0.0,
    ) -> None:
        self.router, self.weights, self.expansion, self.l1 = router, weights, expansion, l1

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        with ExitStack() as stack:
            seen = stack.enter_context(self._activations(undistributed(model)))
            if self.router is not None and self.weights is not None:
                stack.enter_context(self.router(weights=self.weights(batch)))
            loss = next_token_loss(model, batch)
        for hidden in seen:
            hidden = hidden.reshape(*batch.tokens.shape, -1)  # OPT's are (B * T, units)
            loss = loss + self.l1 * hidden[batch.real].abs().sum()
        return loss

    @contextmanager
    def _activations(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Collect the hidden activations of each expanded layer within the block, if there is a penalty on them."""
        seen: list[Tensor] = []

        def see(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            seen.append(args[0])

        with ExitStack() as stack:
            if self.expansion is not None and self.l1:
                for place in self.expansion.hidden.values():
                    consumer = model.get_submodule(place.consumer)
                    stack.callback(consumer.register_forward_pre_hook(see, prepend=True).remove)
            yield seen


def era_weights(token_weight: Tensor, alpha: float) -> Callable[[Batch], dict[str, Tensor]]:
    """Return a function that gives the weights of a batch by column, ``(B, T)`` each.

    At a labelled target ``t`` the original units learn with the weight ``w_t + (1 - w_t) * alpha``. All other weights
    are 1.

    Args:
        token_weight: ``(V,)``, from :func:`token_weights`.
        alpha: weight with which the original units learn a token of weight 0.
    """

    def weights(batch: Batch) -> dict[str, Tensor]:
        kept = token_weight.to(batch.tokens.device)[batch.targets]
        routed = kept + (1 - kept) * alpha
        original = torch.where(batch.labels[:, 1:] == FORGET_LABEL, routed, 1.0)
        positions = batch.at_positions(original, 1.0)
        return {NEW: torch.ones_like(positions), ORIGINAL: positions}

    return weights


def expert_weights(batch: Batch) -> dict[str, Tensor]:
    """Return the weights of DEMix (Gururangan et al. 2022) by column, ``(B, T)`` each, for mode ``"forward"``.

    The new units are the expert of labelled documents, the original units the expert of all others. Only the expert of
    a document computes for it.
    """
    forget = (batch.labels == FORGET_LABEL).to(torch.float32)
    return {NEW: forget, ORIGINAL: 1 - forget}
