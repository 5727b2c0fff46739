"""What the supervisor gets to see, and so what the learner may learn from.

The overseer is the only thing that turns outcomes into labels. Everything after it (rewards, routes,
losses, logs) is a function of the label, so an outcome that nobody saw cannot reach the learner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from routed_rl.routing import UNLABELLED, LabelNoise, RouteTable
from routed_rl.routing.labels import check_probability

GATE = "gate"
SINGLE_MODULE = "policy"
RESERVED = (GATE, "none", UNLABELLED, "unseen")


@dataclass(frozen=True)
class Method:
    """One way of using partial oversight (Cloud et al. 2024, sections 4.3 and F, and controls), as seven switches.

    Attributes:
        reward: what an ended episode pays: ``"reach"``, +1 for any outcome; ``"penalise"``, the value
            of an overseen outcome, +1 for an unseen one; ``"compensate"``, the same, but with an overseen bad
            outcome paying so much less that it pays its value on average, overseen or not; ``"value"``, the value of
            an overseen one, else 0.
        modular: one module per outcome and a gate over them, else a single network.
        gate: the gate is learned, else it weighs all modules alike.
        routed: labels decide which module learns, else every step teaches all.
        screen: episodes that were overseen to end badly (a value below 0) are dropped.
        keep_unseen: episodes that reached something nobody saw are learned from, else dropped.
        sees_all: every outcome is visible: not a method, but the reference that breaks the rule.
    """

    reward: Literal["reach", "penalise", "compensate", "value"]
    modular: bool = False
    gate: bool = False
    routed: bool = False
    screen: bool = False
    keep_unseen: bool = True
    sees_all: bool = False


METHODS: Mapping[str, Method] = {
    "routing": Method("reach", modular=True, gate=True, routed=True),
    "naive": Method("penalise"),
    "penalty": Method("compensate"),
    "screening": Method("reach", screen=True),
    "filtering": Method("value", keep_unseen=False),
    "oracle": Method("value", sees_all=True),
    "no-gate": Method("reach", modular=True, routed=True),
    "no-routing": Method("reach", modular=True, gate=True),
    "no-gate-no-routing": Method("reach", modular=True),
}


class LabelTable(NamedTuple):
    """What a label does, a row for each of ``K + 2`` labels: indexed by labels, for each step of a batch."""

    routes: Tensor  # (K + 2, M + 1) gradient weights of the modules and, last, the gate
    loss: Tensor  # (K + 2,) weight of the policy loss
    entropy: Tensor  # (K + 2,) weight of the entropy bonus
    rewards: Tensor  # (K + 2,) training reward


class Overseer:
    """Outcome and oversight → label → training reward, policy-loss weight and route.

    With ``K`` outcomes, an episode's label is the outcome's number 0 … K-1 if it was overseen,
    ``K`` if something was reached that nobody saw, and ``K + 1`` if nothing was reached.
    The last two are *unlabelled*: the supervisor can tell them apart but not say what happened.

    Args:
        values: what the supervisor thinks of each outcome, e.g. ``{"ghost": -1, "diamond": 1}``.
        method: a name in :data:`METHODS`.
        unlabelled: ``"all"``: unlabelled episodes teach every module (the paper); ``"none"``: no
            part of the policy learns from them (the strict reading). Only methods that route differ.
        noise: labels that are missed or flipped.
        oversight: how likely an outcome is overseen; ``"compensate"`` rewards need to know.

    Raises:
        ValueError: for an unknown method or mode, a reserved name, a value that is not a finite number, no outcomes, or
            no oversight to compensate for.
    """

    def __init__(
        self,
        values: Mapping[str, float],
        method: str = "routing",
        *,
        unlabelled: Literal["all", "none"] = "all",
        noise: LabelNoise = LabelNoise(),  # noqa: B008 (frozen)
        oversight: float = 1.0,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; the methods are {', '.join(METHODS)}")
        if unlabelled not in ("all", "none"):
            raise ValueError(f"unlabelled must be 'all' or 'none', got {unlabelled!r}")
        if not values:
            raise ValueError("values must name at least one outcome, got none")
        for outcome, value in values.items():
            if outcome in RESERVED:
                raise ValueError(f"{outcome!r} cannot name an outcome: it has a meaning of its own")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"the value of outcome {outcome!r} must be a finite number, got {value!r}")
        self.values = {outcome: float(value) for outcome, value in values.items()}
        self.method_name, self.method = method, METHODS[method]
        self.unlabelled = unlabelled
        self.noise = noise
        self.oversight = check_probability("oversight", oversight)
        if self.method.reward == "compensate" and not self.oversight:
            raise ValueError(f"method {method!r} needs some oversight, got {oversight}")

        self.outcomes = tuple(self.values)
        self.reached, self.not_reached = len(self.outcomes), len(self.outcomes) + 1
        self.modules = self.outcomes if self.method.modular else (SINGLE_MODULE,)
        self.rewards = self._rewards()
        self.loss_weights = torch.ones(len(self.outcomes) + 2)
        if not self.method.keep_unseen:
            self.loss_weights[self.reached] = 0.0
        if self.method.screen:
            self.loss_weights[: self.reached] = (torch.tensor(list(self.values.values())) >= 0).float()
        self.entropy_weights = torch.ones_like(self.loss_weights)
        if self.method.routed and unlabelled == "none":
            self.loss_weights[self.reached :] = self.entropy_weights[self.reached :] = 0.0
        self.routes = self._routes()

    def _rewards(self) -> Tensor:
        values = torch.tensor(list(self.values.values()))
        if self.method.reward == "reach":
            seen, unseen = torch.ones_like(values), 1.0
        elif self.method.reward == "penalise":
            seen, unseen = values, 1.0
        elif self.method.reward == "compensate":
            # p * seen + (1 - p) * 1 = value
            seen, unseen = torch.where(values < 0, 1 - (1 - values) / self.oversight, values), 1.0
        else:
            seen, unseen = values, 0.0
        return torch.cat([seen, torch.tensor([unseen, 0.0])])

    def _routes(self) -> RouteTable:
        columns = (*self.modules, GATE)
        if not self.method.routed:
            return RouteTable({outcome: {} for outcome in self.outcomes}, columns)
        routes = {outcome: {column: float(column == outcome) for column in columns} for outcome in self.outcomes}
        if self.unlabelled == "none":
            routes[UNLABELLED] = dict.fromkeys(columns, 0.0)
        return RouteTable(routes, columns)

    def label(
        self, outcome: np.ndarray, overseen: np.ndarray, rng: np.random.Generator, length: np.ndarray | None = None
    ) -> np.ndarray:
        """Labels of ended episodes.

        Args:
            outcome: integers of any shape, the outcome's number or -1 for none reached.
            overseen: booleans of the same shape.
            rng: source of missed and flipped labels; a fixed number of draws per entry.
            length: the episodes' lengths, which noise may depend on.
        """
        seen = (outcome >= 0) & (overseen | self.method.sees_all)
        labels = self.noise.apply(np.where(seen, outcome, -1), len(self.outcomes), rng, length)
        return np.where(labels >= 0, labels, np.where(outcome >= 0, self.reached, self.not_reached))

    def is_labelled(self, labels: Tensor) -> Tensor:
        """True where a label names an outcome."""
        return labels < self.reached

    def route_weights(self, labels: Tensor) -> Tensor:
        """``(…, M + 1)`` gradient weights of the modules and, last, the gate, for labels ``(…)``."""
        return self.routes.weights(torch.where(self.is_labelled(labels), labels, -1))

    def label_table(self, device: torch.device) -> LabelTable:
        """What each label does to the learner, on its device."""
        labels = torch.arange(len(self.rewards))
        columns = (self.route_weights(labels), self.loss_weights, self.entropy_weights, self.rewards)
        return LabelTable(*(column.to(device) for column in columns))

    def to_dict(self) -> dict[str, Any]:
        """Constructor arguments as JSON; :meth:`from_dict` builds an equal overseer."""
        return {
            "values": [list(pair) for pair in self.values.items()],  # JSON objects do not keep their order
            "method": self.method_name,
            "unlabelled": self.unlabelled,
            "noise": asdict(self.noise),
            "oversight": self.oversight,
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Overseer:
        """Inverse of :meth:`to_dict`; raises as the constructor does."""
        options = dict(config)
        values, noise = options.pop("values"), options.pop("noise")
        return cls(dict(values), **options, noise=LabelNoise(**noise))
