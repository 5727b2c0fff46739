"""The overseer: turns the outcomes of episodes into labels, and labels into rewards, route weights and loss weights.

Only the overseer reads outcomes. Rewards, routes and losses are functions of the label. So the outcome of an episode
that was not overseen cannot reach the learner. (One entry of the log compares predicted labels with unseen outcomes.)
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from routed_rl.rl.arguments import check_type
from routed_rl.routing import UNLABELLED, LabelNoise, RouteTable
from routed_rl.routing.labels import check_probability

GATE = "gate"
SINGLE_MODULE = "policy"
Reward = Literal["reach", "penalise", "compensate", "value"]
RESERVED = (GATE, "none", UNLABELLED, "unseen")


@dataclass(frozen=True)
class Method:
    """A training method under partial oversight (Cloud et al. 2024, sections 4.3 and F, and controls): eight switches.

    :data:`METHODS` has the usual ones. Any other combination is a method of your own. An *unseen* outcome is one that
    was reached but not overseen.

    Attributes:
        reward: the training reward at the end of an episode.
            ``"reach"``: +1 for any outcome.
            ``"penalise"``: its value for an overseen outcome, +1 for an unseen one.
            ``"compensate"``: as ``"penalise"``, but an overseen bad outcome pays less than its value. On average over
            overseen and unseen episodes, this outcome then pays its value.
            ``"value"``: its value for an overseen outcome, else 0.
        modular: the policy has one module per outcome and a gate over them. With False it is a single network.
        gate: the gate is learned. With False it gives all modules equal weights.
        routed: the label decides which module learns. With False every step teaches all modules.
        screen: overseen episodes with a bad outcome (a value below 0) are dropped from the policy loss.
        keep_unseen: episodes with an unseen outcome are learned from. With False they are dropped from the policy loss.
        sees_all: every outcome is overseen. This is no admissible method but a reference (oracle).
        predicts: an outcome model learns from overseen episodes, and labels the unseen ones where it is sure
            (:class:`~routed_rl.rl.OutcomeModel`).

    Raises:
        ValueError: for another value, and for a gate or routes without modules.
    """

    reward: Reward
    modular: bool = False
    gate: bool = False
    routed: bool = False
    screen: bool = False
    keep_unseen: bool = True
    sees_all: bool = False
    predicts: bool = False

    def __post_init__(self) -> None:
        if self.reward not in get_args(Reward):
            raise ValueError(f"reward must be one of {', '.join(map(repr, get_args(Reward)))}, got {self.reward!r}")
        switches = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "reward"}
        for name, value in switches.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} must be True or False, got {value!r}")
        for name in ("gate", "routed"):
            if switches[name] and not self.modular:
                raise ValueError(f"{name}=True needs modular=True: a single network has nothing to choose from")


METHODS: Mapping[str, Method] = {
    "routing": Method("reach", modular=True, gate=True, routed=True),
    "naive": Method("penalise"),
    "penalty": Method("compensate"),
    "screening": Method("reach", screen=True),
    "filtering": Method("value", keep_unseen=False),
    "reward-model": Method("value", keep_unseen=False, predicts=True),
    "oracle": Method("value", sees_all=True),
    "no-gate": Method("reach", modular=True, routed=True),
    "no-routing": Method("reach", modular=True, gate=True),
    "no-gate-no-routing": Method("reach", modular=True),
}
"""Name → method."""


class LabelTable(NamedTuple):
    """What each of the ``K + 3`` labels does to the learner, by player: index with a batch's labels and players.

    Player 0 … M-1 is a module that acted alone, and player ``M`` the gate, which weights all modules.
    """

    routes: Tensor  # (K + 3, M + 1, M + 1) gradient weights of the modules and, last, the gate
    loss: Tensor  # (K + 3, M + 1) weight of the policy loss
    entropy: Tensor  # (K + 3, M + 1) weight of the entropy bonus
    rewards: Tensor  # (K + 3, M + 1) training reward at the end of an episode
    shares: Tensor  # (K + 3, M + 1) weight of the environment's own reward, at every step


OF_STUDIES = {"routing-predicted": "unlabelled='predicted', and solo=1 for the learner", "strict": "unlabelled='none'"}
"""Methods of studies that are routing with other options."""


class Overseer:
    """Labels episodes, and gives each label a training reward, a policy-loss weight and route weights.

    With ``K`` outcomes, the label of an episode is

    - the outcome's number 0 … K-1 if the outcome was overseen, or predicted,
    - ``K`` if an outcome was reached, but neither overseen nor predicted,
    - ``K + 1`` if no outcome was reached,
    - ``K + 2`` if an outcome was reached whose end is *novel*: the outcome model cannot label it, although it labels
      nearly all others. Only a module that acts alone learns something else from it than from label ``K``.

    The last three are called *unlabelled*: the supervisor does not know which outcome was reached.

    **The environment's own reward.** With ``reward="environment"``, unlabelled episodes pay what the environment pays,
    step by step, in place of +1 for any outcome. What a labelled episode pays depends on the method's reward:

    - ``"reach"`` (all methods that route, their ablations, and screening): also the environment's reward. Labels only
      choose who learns.
    - ``"penalise"`` (naive): the outcome's value at the end. The environment's reward is withheld.
    - ``"compensate"`` (penalty): the same for a good outcome. For a bad outcome with value ``v`` and oversight ``p``,
      each reward ``r`` of the environment becomes ``-r (1 - p) / p``, and the end pays ``v / p``. Averaged over
      overseen and unseen episodes, this outcome then pays ``v`` at its end and nothing else.
    - ``"value"`` (filtering, reward-model, oracle): nothing changes. They use values only.

    A step that is learned before its episode has ended counts as unlabelled. A module that acts alone (``solo``) keeps
    its reward by label. The learner then sees every reward of the environment, and a reward may tell the outcome. So
    choose this only if the developer would train on the environment's reward anyway. Unseen outcomes themselves still
    do not reach the learner.

    Args:
        values: outcome → its value to the supervisor, e.g. ``{"ghost": -1, "diamond": 1}``.
        method: a name in :data:`METHODS`, or a :class:`Method` of your own.
        unlabelled: for methods that route. ``"all"``: unlabelled episodes teach every module (the paper).
            ``"none"``: no part of the policy learns from them (the strict reading). ``"predicted"``: an outcome model
            labels the unseen ones where it is sure, and the others teach every module.
        reward: what an unlabelled episode pays. ``"outcome"``: +1 at its end if it reached an outcome (the paper), or
            nothing if the method uses values. ``"environment"``: what the environment pays (see above).
        noise: the rates at which labels are missed or flipped.
        oversight: the probability that an outcome is overseen. Only ``"compensate"`` rewards need it.

    Raises:
        ValueError: for an argument of a wrong type, an unknown method or mode, no outcomes, a reserved outcome name, a
            value that is not a finite number, or no oversight above 0 with ``"compensate"`` rewards.
    """

    def __init__(
        self,
        values: Mapping[str, float],
        method: str | Method = "routing",
        *,
        unlabelled: Literal["all", "none", "predicted"] = "all",
        reward: Literal["outcome", "environment"] = "outcome",
        noise: LabelNoise = LabelNoise(),  # noqa: B008 (frozen)
        oversight: float | None = None,
    ) -> None:
        check_type((Mapping,), "outcome → value, as in {'ghost': -1, 'diamond': 1}", values=values)
        check_type((LabelNoise,), "a LabelNoise, as in LabelNoise(miss_rate=0.1)", noise=noise)
        if not isinstance(method, Method) and method in OF_STUDIES:
            raise ValueError(f"{method!r} is a method of studies: here it is 'routing' with {OF_STUDIES[method]}")
        if not isinstance(method, Method) and method not in METHODS:
            raise ValueError(f"unknown method {method!r}; the methods are {', '.join(METHODS)}, or a Method(…)")
        if unlabelled not in ("all", "none", "predicted"):
            raise ValueError(f"unlabelled must be 'all', 'none' or 'predicted', got {unlabelled!r}")
        if reward not in ("outcome", "environment"):
            raise ValueError(f"reward must be 'outcome' or 'environment', got {reward!r}")
        if not values:
            raise ValueError(f"values must name at least one outcome, got {values!r}")
        for outcome, value in values.items():
            if outcome in RESERVED:
                raise ValueError(f"{outcome!r} cannot name an outcome: the reserved names are {', '.join(RESERVED)}")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"the value of outcome {outcome!r} must be a finite number, got {value!r}")
        self.values = {outcome: float(value) for outcome, value in values.items()}
        self.method = method if isinstance(method, Method) else METHODS[method]
        self.method_name = next((name for name, known in METHODS.items() if known == self.method), None)
        self.unlabelled = unlabelled
        self.predicts = self.method.predicts or (self.method.routed and unlabelled == "predicted")
        self.pays_environment = reward == "environment" and self.method.reward != "value"
        self.reward = reward
        self.noise = noise
        self.oversight = None if oversight is None else check_probability("oversight", oversight)
        if self.method.reward == "compensate" and not self.oversight:
            raise ValueError(
                f"method {self.method_name or self.method!r} needs oversight=…, the probability above 0 that an "
                f"outcome is overseen, got {oversight}"
            )

        self.outcomes = tuple(self.values)
        self.reached, self.not_reached, self.novel = (len(self.outcomes) + unlabelled for unlabelled in range(3))
        self.modules = self.outcomes if self.method.modular else (SINGLE_MODULE,)
        self.rewards, self.shares = self._environment_rewards() if self.pays_environment else self._outcome_rewards()
        self.loss_weights = torch.ones(len(self.outcomes) + 2)
        if not self.method.keep_unseen:
            self.loss_weights[self.reached] = 0.0
        if self.method.screen:
            self.loss_weights[: self.reached] = (torch.tensor(list(self.values.values())) >= 0).float()
        self.entropy_weights = torch.ones_like(self.loss_weights)
        if self.method.routed and unlabelled == "none":
            self.loss_weights[self.reached :] = self.entropy_weights[self.reached :] = 0.0
        self.routes = self._routes()

    def __repr__(self) -> str:
        parameters = inspect.signature(Overseer).parameters.values()
        usual = {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY}
        given = {name: getattr(self, name) for name in usual if getattr(self, name) != usual[name]}
        options = "".join(f", {name}={value!r}" for name, value in given.items())
        return f"Overseer({self.values}, {self.method_name or self.method!r}{options})"

    def _outcome_rewards(self) -> tuple[Tensor, Tensor]:
        """Return, by label, the reward at an episode's end, and the weight 0 of the environment's reward."""
        values = torch.tensor(list(self.values.values()))
        if self.method.reward == "reach":
            seen, unseen = torch.ones_like(values), 1.0
        elif self.method.reward == "penalise":
            seen, unseen = values, 1.0
        elif self.method.reward == "compensate":
            assert self.oversight is not None
            # p * seen + (1 - p) * 1 = value
            seen, unseen = torch.where(values < 0, 1 - (1 - values) / self.oversight, values), 1.0
        else:
            seen, unseen = values, 0.0
        rewards = torch.cat([seen, torch.tensor([unseen, 0.0])])
        return rewards, torch.zeros_like(rewards)

    def _environment_rewards(self) -> tuple[Tensor, Tensor]:
        """Return, by label, the reward at an episode's end, and the weight of the environment's reward at each step."""
        values = torch.tensor(list(self.values.values()))
        if self.method.reward == "reach":
            seen, share = torch.zeros_like(values), torch.ones_like(values)
        elif self.method.reward == "penalise":
            seen, share = values, torch.zeros_like(values)
        else:
            assert self.oversight is not None  # checked by the constructor
            # p * seen + (1 - p) * 0 = value, and p * share + (1 - p) * 1 = 0
            seen = torch.where(values < 0, values / self.oversight, values)
            share = torch.where(values < 0, 1 - 1 / self.oversight, 0.0)
        return torch.cat([seen, torch.zeros(2)]), torch.cat([share, torch.ones(2)])

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
        """Return the labels of ended episodes, as integers of the shape of ``outcome``.

        Args:
            outcome: integers of any shape: the outcome's number, or -1 if none was reached.
            overseen: booleans of the same shape.
            rng: source of the label noise. Every entry draws the same number of random numbers.
            length: the episodes' lengths in steps: the difficulty for noise with ``hard_first``.
        """
        seen = (outcome >= 0) & (overseen | self.method.sees_all)
        labels = self.noise.apply(np.where(seen, outcome, -1), len(self.outcomes), rng, length)
        return np.where(labels >= 0, labels, np.where(outcome >= 0, self.reached, self.not_reached))

    def is_labelled(self, labels: Tensor) -> Tensor:
        """Return booleans of the labels' shape: true where the label is an outcome."""
        return labels < self.reached

    def route_weights(self, labels: Tensor) -> Tensor:
        """Return the route weights ``(…, M + 1)`` of the modules and, last, of the gate, for labels ``(…)``."""
        return self.routes.weights(torch.where(self.is_labelled(labels), labels, -1))

    def label_table(self, device: torch.device) -> LabelTable:
        """Return what each label does to the learner, as tensors on ``device``.

        A module that acted alone is paid 1 for its own outcome, -1 for another, and 0 for none. It learns nothing from
        an episode that reached an outcome without a label, unless its end is novel: then it is paid 1. No other module
        learns from its episodes, but if they have a label, they are replayed, and the gate learns the label.
        """
        labels, modules = torch.tensor([*range(self.novel), self.reached]), len(self.modules)
        routes = self.route_weights(labels)[:, None].repeat(1, modules + 1, 1)
        columns = (self.loss_weights, self.entropy_weights, self.rewards, self.shares)
        loss, entropy, rewards, shares = (column[labels, None].repeat(1, modules + 1) for column in columns)
        if self.method.routed:
            own = torch.eye(modules)
            rewards[: self.reached, :-1] = 2 * own - 1
            shares[:, :-1] = 0.0
            rewards[self.novel, :-1] = 1.0
            rewards[self.reached, :-1] = loss[self.reached, :-1] = entropy[self.reached, :-1] = 0.0
            routes[:, :-1] = 0.0
            routes[:, :-1, :-1] = own * loss[:, :-1, None]
        return LabelTable(*(column.to(device) for column in (routes, loss, entropy, rewards, shares)))

    def to_dict(self) -> dict[str, Any]:
        """Return the constructor arguments as JSON; :meth:`from_dict` builds an equal overseer from them."""
        return {
            "values": [list(pair) for pair in self.values.items()],  # JSON objects do not keep their order
            "method": self.method_name or asdict(self.method),
            "unlabelled": self.unlabelled,
            "reward": self.reward,
            "noise": asdict(self.noise),
            "oversight": self.oversight,
        }

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Overseer:
        """Return the overseer that :meth:`to_dict` described; raise the constructor's errors."""
        options = dict(config)
        values, noise, method = options.pop("values"), options.pop("noise"), options.pop("method")
        method = Method(**method) if isinstance(method, Mapping) else method
        return cls(dict(values), method, **options, noise=LabelNoise(**noise))
