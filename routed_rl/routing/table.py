"""Route tables: for each label, the weight with which each module learns from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

UNLABELLED = "unlabelled"
"""The row of a :class:`~routed_rl.routing.RouteTable` for data without a label."""


class RouteTable:
    """A table of route weights, label → module → weight: the edge weights of Cloud et al. 2024, section 3.

    Build it from a dict. A module that a row does not mention has weight 1: ordinary backpropagation.
    The row ``"unlabelled"`` is for data without a label (id -1). Its weights are 1 unless you give them.

    >>> table = RouteTable(
    ...     {"diamond": {"ghost": 0, "gate": 0}, "ghost": {"diamond": 0, "gate": 0}},
    ...     modules=("diamond", "ghost", "gate"),
    ... )
    >>> table.weights(torch.tensor([0, 1, -1]))
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [1., 1., 1.]])

    Attributes:
        labels: the label names, in the order of their ids 0 … L-1.
        modules: the module names, in the order of the columns.

    Raises:
        ValueError: for an unknown module name, a weight that is not a finite number, or no modules.
    """

    def __init__(self, routes: Mapping[str, Mapping[str, float]], modules: Sequence[str]) -> None:
        if not modules or len(set(modules)) != len(modules):
            raise ValueError(f"modules must be at least one name, all distinct, got {list(modules)}")
        self.modules = tuple(modules)
        self.labels = tuple(label for label in routes if label != UNLABELLED)
        rows = []
        for label in (*self.labels, UNLABELLED):
            row = dict(routes.get(label, {}))
            for module, weight in row.items():
                if module not in self.modules:
                    raise ValueError(
                        f"label {label!r} routes to unknown module {module!r}; the modules are {list(self.modules)}"
                    )
                if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight):
                    raise ValueError(
                        f"the weight of label {label!r} on module {module!r} must be a finite number, got {weight!r}"
                    )
            rows.append([float(row.get(module, 1.0)) for module in self.modules])
        self._weights = torch.tensor(rows)

    def label_id(self, label: str) -> int:
        """Return the id of a label, -1 for ``"unlabelled"``; raise a ValueError if there is no such label."""
        if label == UNLABELLED:
            return -1
        if label not in self.labels:
            raise ValueError(f"unknown label {label!r}; the labels are {list(self.labels)}")
        return self.labels.index(label)

    def weights(self, label_ids: Tensor) -> Tensor:
        """Return the weights ``(…, M)`` of M modules for integer label ids of any shape ``(…)``.

        Raises:
            ValueError: if an id is outside -1 … L-1, or the ids are no tensor of integers.
        """
        if not isinstance(label_ids, Tensor):
            raise ValueError(
                f"labels must be a tensor of label ids, as in torch.tensor([{len(self.labels) - 1}, -1]); label_id() "
                f"gives the id of a label; got {repr(label_ids)[:40]}"
            )
        if label_ids.is_floating_point() or label_ids.dtype == torch.bool:
            raise ValueError(f"label ids must be integers, got {label_ids.dtype} of shape {tuple(label_ids.shape)}")
        if label_ids.numel() and not (int(label_ids.min()) >= -1 and int(label_ids.max()) < len(self.labels)):
            raise ValueError(
                f"label ids must lie in -1 … {len(self.labels) - 1}, "
                f"got {int(label_ids.min())} … {int(label_ids.max())}"
            )
        return self._weights.to(label_ids.device)[label_ids.long()]

    def to_dict(self) -> dict[str, dict[str, float]]:
        """Return the complete table as a dict, from which an equal table can be built."""
        rows = self._weights.tolist()
        return {
            label: dict(zip(self.modules, row, strict=True))
            for label, row in zip((*self.labels, UNLABELLED), rows, strict=True)
        }

    def __repr__(self) -> str:
        return f"RouteTable({self.to_dict()!r}, modules={self.modules!r})"
