"""Measure how much gradient each label sends into each module, to check that routing does what the table says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from routed_rl.routing.table import UNLABELLED


@dataclass(frozen=True)
class LeakageReport:
    """Gradient norm by label and module.

    Attributes:
        mass: ``mass[label][module]`` is the L2 norm, over the module's parameters, of the gradient of the summed loss
            of the label's samples.
    """

    mass: Mapping[str, Mapping[str, float]]

    def leakage(self, label: str, intended: Iterable[str]) -> float:
        """Return the share of a label's squared gradient norm that lies outside the ``intended`` modules.

        It is 0 when nothing leaks, and 0 for a label without gradient.

        Raises:
            ValueError: if the label or a module is not in the report.
        """
        row, intended = self._row(label), set(intended)
        unknown = intended - row.keys()
        if unknown:
            raise ValueError(f"unknown modules {sorted(unknown)}; the report has {list(row)}")
        total = sum(mass**2 for mass in row.values())
        outside = sum(mass**2 for module, mass in row.items() if module not in intended)
        return outside / total if total > 0 else 0.0

    def _row(self, label: str) -> Mapping[str, float]:
        if label not in self.mass:
            raise ValueError(f"unknown label {label!r}; the report has {list(self.mass)}")
        return self.mass[label]

    def __str__(self) -> str:
        modules = list(next(iter(self.mass.values()), {}))
        width = max((len(name) for name in (*modules, *self.mass)), default=0) + 2
        lines = ["".join(f"{name:>{width}}" for name in ("", *modules))]
        lines += [
            f"{label:>{width}}" + "".join(f"{row[module]:>{width}.3g}" for module in modules)
            for label, row in self.mass.items()
        ]
        return "\n".join(lines)


def leakage_report(
    losses: Tensor, label_ids: Tensor, modules: Mapping[str, nn.Module], labels: Sequence[str]
) -> LeakageReport:
    """Return the norm of each label's gradient in each module; parameters and their ``.grad`` stay unchanged.

    Args:
        losses: ``(B,)`` per-sample losses, computed through the routed forward pass.
        label_ids: ``(B,)`` ids into ``labels``, -1 for unlabelled.
        modules: name → module to report. List shared layers too, to see what they learn.
        labels: the label names, in the order of their ids.

    Raises:
        ValueError: if the shapes do not match or an id has no label.
    """
    if losses.ndim != 1 or losses.shape != label_ids.shape:
        raise ValueError(
            f"losses and label_ids must both have shape (B,), got {tuple(losses.shape)} and {tuple(label_ids.shape)}"
        )
    if label_ids.numel() and not -1 <= int(label_ids.min()) <= int(label_ids.max()) < len(labels):
        raise ValueError(f"label ids must lie in -1 … {len(labels) - 1}, got {label_ids.tolist()}")
    names = list(modules)
    parameters = {name: [p for p in modules[name].parameters() if p.requires_grad] for name in names}
    flat = [p for name in names for p in parameters[name]]
    mass: dict[str, dict[str, float]] = {}
    for label_id, label in ((i, name) for i, name in [*enumerate(labels), (-1, UNLABELLED)]):
        chosen = torch.where(label_ids == label_id, losses, 0.0).sum()
        gradients = torch.autograd.grad(chosen, flat, retain_graph=True, allow_unused=True)
        by_parameter = {id(p): g for p, g in zip(flat, gradients, strict=True)}
        mass[label] = {
            name: sum(float(g.pow(2).sum()) for p in parameters[name] if (g := by_parameter[id(p)]) is not None) ** 0.5
            for name in names
        }
    return LeakageReport(mass)
