"""Steering: choose, mix, avoid or ablate the modules of a policy, from the policy or from its algorithm."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import NoneType
from typing import Any

from gymnasium import spaces

from routed_rl.rl.arguments import check_known, check_type
from routed_rl.rl.networks import RoutedExtractor
from routed_rl.rl.overseer import METHODS, SINGLE_MODULE
from routed_rl.wording import did_you_mean

Steering = Mapping[str, Any]
"""Keyword arguments for ``RoutedActorCriticPolicy.steered``."""


class SteerablePolicy:
    """The steering methods of :class:`~routed_rl.rl.RoutedActorCriticPolicy`, which sets the attributes they read."""

    mlp_extractor: RoutedExtractor
    action_space: spaces.Space[Any]

    @property
    def module_names(self) -> tuple[str, ...]:
        """The modules that can be steered to and ablated, one for each outcome."""
        return self.mlp_extractor.names

    @property
    def steering(self) -> dict[str, Any]:
        """The current steering as JSON, ``{}`` if there is none; :meth:`set_steering` accepts it."""
        extractor = self.mlp_extractor
        steering: dict[str, Any] = {}
        if extractor.ablated:
            steering["ablated"] = sorted(extractor.ablated)
        if extractor.mix is not None:
            steering["mix"] = dict(zip(self.module_names, extractor.mix, strict=True))
        if extractor.avoid:
            steering["avoid"] = {self.module_names[i]: strength for i, strength in extractor.avoid.items()}
        if extractor.temperature != 1:
            steering["temperature"] = extractor.temperature
        return steering

    def set_steering(self, steering: Mapping[str, Any]) -> None:
        """Restore a steering that :attr:`steering` returned."""
        self.unsteer()
        if "ablated" in steering:
            self.ablate(*steering["ablated"])
        if "mix" in steering:
            self.steer(steering["mix"], avoid=steering.get("avoid", {}), temperature=steering.get("temperature", 1.0))

    def steer(
        self, choice: str | Mapping[str, float], *, avoid: Mapping[str, float] | None = None, temperature: float = 1.0
    ) -> None:
        """Use one module, or a fixed mix of modules, in place of the gate; what is ablated stays so.

        Args:
            choice: a module, or module → weight with weights that sum to 1.
            avoid: module → strength with which the policy avoids the actions of this module (contrastive steering):
                ``log p(a) = log p_choice(a) - sum over k of avoid_k * gate_k(x) * p_k(a) + const``. The formula
                subtracts the probability ``p_k(a)``, not its logarithm, because the probability is bounded. Where the
                gate gives the avoided module no weight, nothing changes (docs/oversight.md).
            temperature: divides the logits; below 1 it sharpens the distribution.

        Raises:
            ValueError: for an unknown or ablated module; weights that are negative or do not sum to 1; a strength or
                temperature out of range; or ``avoid`` or ``temperature`` with actions that are not discrete.
        """
        if not isinstance(choice, (str, Mapping)):
            raise ValueError(
                f"steer() needs a module, as in steer({self.module_names[-1]!r}), or module → weight, got {choice!r}; "
                "unsteer() undoes steering"
            )
        if not isinstance(avoid, (Mapping, NoneType)):
            raise ValueError(f"avoid must be module → strength, as in {{{self.module_names[0]!r}: 4}}, got {avoid!r}")
        weights = {choice: 1.0} if isinstance(choice, str) else dict(choice)
        self._check_modules(weights)
        if not all(_is_number(weight) and weight >= 0 for weight in weights.values()) or (
            abs(sum(weights.values()) - 1) > 1e-6
        ):
            raise ValueError(f"steering weights must be at least 0 and sum to 1, got {weights}")
        if gone := [name for name, weight in weights.items() if weight and name in self.mlp_extractor.ablated]:
            raise ValueError(f"cannot steer to {gone}, which are ablated; unsteer() restores ablated modules")
        strengths = dict(avoid or {})
        self._check_modules(strengths)
        if bad := {name: value for name, value in strengths.items() if not (_is_number(value) and value >= 0)}:
            raise ValueError(f"the strengths in avoid must be finite numbers, at least 0, got {bad}")
        if both := [name for name in strengths if weights.get(name)]:
            raise ValueError(f"cannot both choose and avoid {both}: name each module only once")
        if gone := [name for name in strengths if name in self.mlp_extractor.ablated]:
            raise ValueError(f"cannot avoid {gone}, which are ablated; unsteer() restores ablated modules")
        if not (_is_number(temperature) and temperature > 0):
            raise ValueError(f"temperature must be a finite number above 0, got {temperature!r}")
        if (strengths or temperature != 1) and not isinstance(self.action_space, spaces.Discrete):
            raise ValueError(f"avoid and temperature need discrete actions, this policy has {self.action_space}")
        extractor = self.mlp_extractor
        extractor.mix = tuple(float(weights.get(name, 0.0)) for name in self.module_names)
        extractor.avoid = {self.module_names.index(name): float(strength) for name, strength in strengths.items()}
        extractor.temperature = float(temperature)

    def ablate(self, *names: str) -> None:
        """Ablate modules, in addition to those ablated before. The gate renormalises over the remaining modules.

        A steering that does not use these modules stays.

        Raises:
            ValueError: for an unknown module, if no module is named, if no module would remain, or for a module to
                which the policy is steered, or which it avoids.
        """
        if not names:
            raise ValueError(
                f"ablate() needs the name of at least one module; the modules are {', '.join(self.module_names)}"
            )
        self._check_modules(names)
        extractor = self.mlp_extractor
        ablated = extractor.ablated.union(names)
        if len(ablated) == len(self.module_names):
            raise ValueError(f"cannot ablate {list(names)}: no module of {list(self.module_names)} would remain")
        weights = zip(self.module_names, extractor.mix or (), strict=False)
        in_use = {name for name, weight in weights if weight} | {self.module_names[i] for i in extractor.avoid}
        if used := sorted(in_use.intersection(names)):
            raise ValueError(f"cannot ablate {used}, which the steering {self.steering} uses; call unsteer() first")
        extractor.ablated = ablated

    def unsteer(self) -> None:
        """Undo all steering and ablation: the gate weights all modules again."""
        self.mlp_extractor.unsteer()

    @contextmanager
    def steered(
        self,
        choice: str | Mapping[str, float] | None = None,
        *,
        ablate: str | Sequence[str] = (),
        avoid: Mapping[str, float] | None = None,
        temperature: float = 1.0,
    ) -> Iterator[None]:
        """Within the block, the policy has this steering and no other; then the former steering is restored.

        The modules of ``ablate`` are ablated, then the policy is steered to ``choice``, as by :meth:`ablate` and
        :meth:`steer`. Without arguments it is unsteered.

        Raises:
            ValueError: as these, or for ``avoid`` or ``temperature`` without ``choice``.
        """
        before = self.steering
        try:
            self.unsteer()
            if ablate:
                self.ablate(*([ablate] if isinstance(ablate, str) else ablate))
            if choice is not None:
                self.steer(choice, avoid=avoid, temperature=temperature)
            elif avoid or temperature != 1:
                raise ValueError(
                    f"avoid={avoid!r} and temperature={temperature!r} need a module that acts, as in "
                    f"steered({self.module_names[-1]!r}, avoid=…)"
                )
            yield
        finally:
            self.set_steering(before)

    def _check_modules(self, names: Mapping[str, float] | Sequence[str]) -> None:
        for name in names:
            if name in self.module_names:
                continue
            if self.module_names == (SINGLE_MODULE,):
                modular = ", ".join(method for method, switches in METHODS.items() if switches.modular)
                raise ValueError(
                    f"cannot steer to or ablate {name!r}: this method has a single network; those with modules are "
                    f"{modular}"
                )
            nearest = did_you_mean(name, self.module_names) if isinstance(name, str) else ""
            raise ValueError(f"unknown module {name!r}; the modules are {', '.join(self.module_names)}{nearest}")


def check_steering(steering: object) -> Steering:
    """Return keyword arguments for ``steered``. The name of a module is short for ``{"choice": name}``.

    Raises:
        ValueError: for another type, or an argument that ``steered`` does not have.
    """
    if isinstance(steering, str):
        return {"choice": steering}
    check_type((Mapping,), "a module, or a dict as in {'choice': 'diamond', 'avoid': {'ghost': 4}}", steering=steering)
    check_known("a steering", steering, SteerablePolicy.steered)  # type: ignore[arg-type]
    return steering  # type: ignore[return-value]


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value)


class Steerable:
    """The steering methods of an algorithm; they steer its policy."""

    policy: SteerablePolicy

    def steer(
        self, choice: str | Mapping[str, float], *, avoid: Mapping[str, float] | None = None, temperature: float = 1.0
    ) -> None:
        """Use one module, or a mix of modules, in place of the gate; see :meth:`RoutedActorCriticPolicy.steer`."""
        self.policy.steer(choice, avoid=avoid, temperature=temperature)

    def ablate(self, *names: str) -> None:
        """Ablate modules; see :meth:`RoutedActorCriticPolicy.ablate`."""
        self.policy.ablate(*names)

    def unsteer(self) -> None:
        """Undo all steering and ablation; see :meth:`RoutedActorCriticPolicy.unsteer`."""
        self.policy.unsteer()

    def steered(
        self,
        choice: str | Mapping[str, float] | None = None,
        *,
        ablate: str | Sequence[str] = (),
        avoid: Mapping[str, float] | None = None,
        temperature: float = 1.0,
    ) -> AbstractContextManager[None]:
        """Steer within a ``with`` block; see :meth:`~routed_rl.rl.RoutedActorCriticPolicy.steered`."""
        return self.policy.steered(choice, ablate=ablate, avoid=avoid, temperature=temperature)
