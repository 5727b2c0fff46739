"""Batches of transformers' trainers: rows with a column ``route`` are padded, and become a :class:`Batch` of ours.

``B`` rows, ``T`` tokens in the longest row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from routed_rl.lm.batches import FORGET_LABEL, NO_LABEL, PADDING, Batch

ROUTE = "route"
"""The column of a dataset with the labels: 0 for forget, -1 for all others; one for a row, or one for each token."""
IGNORED = -100
"""Label of a token that is no target, in transformers."""
Row = Mapping[str, Any]
Collator = Callable[[Sequence[Row]], MutableMapping[str, Any]]

_MISSING = (
    f"the rows have no column {ROUTE!r}, with {FORGET_LABEL} for forget and {NO_LABEL} for all else; if the dataset "
    "has it, something removed it on the way: set remove_unused_columns=False (and packing=False in TRL)"
)


def pad_rows(rows: Sequence[Row]) -> dict[str, Any]:
    """Return rows as tensors, padded on the right to the longest row. Padding has the attention mask 0.

    Args:
        rows: ``input_ids`` and perhaps ``labels``, ``attention_mask`` and ``position_ids``, each of the row's length.
    """
    masked = [{"attention_mask": torch.ones(len(row["input_ids"]), dtype=torch.int64), **row} for row in rows]
    columns = {name: [torch.as_tensor(row[name]) for row in masked] for name in masked[0]}
    return {
        name: pad_sequence(column, batch_first=True, padding_value=IGNORED if name == "labels" else 0)
        if column[0].ndim
        else torch.stack(column)
        for name, column in columns.items()
    }


@dataclass(frozen=True)
class RouteCollator:
    """A data collator that adds the labels of the tokens to the batch of another data collator.

    Rows without ``labels`` are trained on all tokens. The first token of a document is never a target. A label of a
    whole row is not that of the EOS at its end, so a model does not forget how to stop.

    Attributes:
        collate: the other data collator. It gets the rows without ``route``. It may pad rows on either side, cut them
            at either end, or join them into one row.
        eos: ids of EOS.

    Raises:
        ValueError: when called: for rows without ``route``, labels that are not 0 or -1, or of another number than the
            row has tokens.
    """

    collate: Collator = pad_rows
    eos: tuple[int, ...] = ()

    def __call__(self, rows: Sequence[Row]) -> MutableMapping[str, Any]:
        if not all(ROUTE in row for row in rows):
            raise ValueError(_MISSING)
        routes = [_route(row) for row in rows]
        batch = self.collate([{name: value for name, value in row.items() if name != ROUTE} for row in rows])
        batch[ROUTE] = self._laid_out(routes, rows, batch)
        if len(batch[ROUTE]) < len(rows) and "position_ids" not in batch:
            batch["position_ids"] = _places(rows, batch["input_ids"])
        examples = _examples(batch)
        labels = batch.get("labels")
        labels = batch["input_ids"].masked_fill(examples == PADDING, IGNORED) if labels is None else labels
        # The Trainer counts the targets. Some of its versions count the first token of a row too.
        batch["labels"] = labels.masked_fill(~_continues(examples), IGNORED)
        return batch

    def _laid_out(self, routes: Sequence[Tensor], rows: Sequence[Row], batch: Row) -> Tensor:
        """Return ``(B, T)``: the label of each token of a batch, -1 at padding."""
        tokens = batch["input_ids"]
        if len(tokens) == len(rows):
            real = _examples(batch) != PADDING
            found = [
                _in_row(route, row, of) if route.ndim else self._for_all(route, of, is_real)
                for route, row, of, is_real in zip(routes, rows, tokens, real, strict=True)
            ]
            return torch.stack(found)
        own = [torch.as_tensor(row["input_ids"]) for row in rows]
        lengths = [len(row) for row in own]
        if len(tokens) > 1 or sum(lengths) > tokens.shape[1]:
            raise ValueError(
                f"the data collator makes a batch of shape {tuple(tokens.shape)} of rows of {lengths} tokens"
            )
        parts = [
            route if route.ndim else self._for_all(route, row, torch.ones_like(row, dtype=torch.bool))
            for route, row in zip(routes, own, strict=True)
        ]
        return _padded(torch.cat(parts), tokens.shape[1])[None]

    def _for_all(self, route: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        """Return ``(T,)``: one label for the tokens of a row, but not for the EOS at its end."""
        labels = torch.where(real.cpu(), route, NO_LABEL)
        (places,) = real.nonzero(as_tuple=True)
        if len(places) and int(tokens[places[-1]]) in self.eos:
            labels[places[-1]] = NO_LABEL
        return labels


def routed_batch(inputs: Mapping[str, Any]) -> Batch:
    """Return the inputs of a trainer's ``compute_loss`` as a batch of ours.

    Args:
        inputs: ``input_ids`` ``(B, T)``; ``route``, ``(B,)`` or ``(B, T)``; and ``labels`` ``(B, T)``, else all tokens
            are targets. With ``attention_mask``, its zeros are padding on either side. With ``position_ids``, each 0
            begins a document, which does not see the others.

    Raises:
        ValueError: if there is no ``route``.
    """
    if ROUTE not in inputs:
        raise ValueError(_MISSING)
    tokens, route, examples = inputs["input_ids"], inputs[ROUTE], _examples(inputs)
    route = route[:, None].expand_as(tokens) if route.ndim == 1 else route
    padding = examples == PADDING
    tensors = [tokens.masked_fill(padding, 0), route.masked_fill(padding, NO_LABEL), inputs.get("labels", tokens)]
    if "attention_mask" in inputs:  # padding to the end of the row, where no token sees it
        order = padding.to(torch.int8).argsort(dim=1, stable=True)
        tensors, examples = [tensor.gather(1, order) for tensor in tensors], examples.gather(1, order)
    tokens, route, labels = tensors
    scored = (labels != IGNORED) & _continues(examples)
    return Batch(tokens, route, scored[:, 1:], examples, packed="position_ids" in inputs)


def _route(row: Row) -> Tensor:
    """Return the labels of a row: ``()``, or one for each token."""
    route = torch.as_tensor(row[ROUTE])
    wrong = route[(route != FORGET_LABEL) & (route != NO_LABEL)] if route.dtype != torch.bool else route
    if wrong.numel():
        raise ValueError(
            f"{ROUTE!r} must be {FORGET_LABEL} (forget) or {NO_LABEL} (all else), got {wrong.flatten()[0].item()!r}"
        )
    length = len(row["input_ids"]) if "input_ids" in row else None
    if route.ndim and route.shape != (length,):
        raise ValueError(
            f"{ROUTE!r} must be one label for the row or one for each of its {length} tokens, got {len(route)} labels"
        )
    return route.to(torch.int64)


def _places(rows: Sequence[Row], tokens: Tensor) -> Tensor:
    """Return ``(1, T)``: the place of each token in its row, where all rows are joined into one."""
    places = torch.cat([torch.arange(len(row["input_ids"])) for row in rows])
    return torch.nn.functional.pad(places, (0, tokens.shape[1] - len(places)))[None]


def _in_row(route: Tensor, row: Row, tokens: Tensor) -> Tensor:
    """Return ``(T,)``: the labels of a row at the places of its tokens in the batch."""
    size = len(tokens)
    before = torch.as_tensor(row["input_ids"])
    there, kept = tokens.cpu(), min(size, len(before))
    if torch.equal(there[:kept], before[:kept]):
        return _padded(route[:kept], size)
    if torch.equal(there[-kept:], before[-kept:]):
        return _padded(route[-kept:], size, left=True)
    raise ValueError(f"the data collator changes the tokens of a row: give one label {ROUTE!r} for each row")


def _padded(labels: Tensor, size: int, left: bool = False) -> Tensor:
    room = (size - len(labels), 0) if left else (0, size - len(labels))
    return torch.nn.functional.pad(labels, room, value=NO_LABEL)


def _examples(inputs: Mapping[str, Any]) -> Tensor:
    """Return ``(B, T)``: the number of each token's document in its row, as :attr:`Batch.examples`."""
    tokens, places = inputs["input_ids"], inputs.get("position_ids")
    real = inputs["attention_mask"] != 0 if "attention_mask" in inputs else torch.ones_like(tokens, dtype=torch.bool)
    number = torch.zeros_like(tokens) if places is None else ((places == 0) & real).cumsum(dim=1).sub(1).clamp_min(0)
    return torch.where(real, number, PADDING)


def _continues(examples: Tensor) -> Tensor:
    """Return ``(B, T)`` bool: the tokens that are not the first of their document, and not padding."""
    before = torch.nn.functional.pad(examples[:, :-1], (1, 0), value=PADDING)
    return (examples == before) & (examples != PADDING)
