"""Steering methods of an algorithm; they steer its policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from routed_rl.rl.policies import RoutedActorCriticPolicy


class Steerable:
    """The steering methods of an algorithm whose policy is a :class:`RoutedActorCriticPolicy`."""

    policy: RoutedActorCriticPolicy

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
        self, choice: str | Mapping[str, float] | None = None, *, ablate: str | Sequence[str] = (), **options: Any
    ) -> AbstractContextManager[None]:
        """Steer within a ``with`` block; see :meth:`RoutedActorCriticPolicy.steered`."""
        return self.policy.steered(choice, ablate=ablate, **options)
