"""Steering an algorithm is steering its policy."""

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
        """Act with one module, or a fixed mix of modules, away from others or sharper; see
        :meth:`RoutedActorCriticPolicy.steer`."""
        self.policy.steer(choice, avoid=avoid, temperature=temperature)

    def ablate(self, *names: str) -> None:
        """Delete modules; see :meth:`RoutedActorCriticPolicy.ablate`."""
        self.policy.ablate(*names)

    def unsteer(self) -> None:
        """Return to the gate over all modules, also those that were ablated."""
        self.policy.unsteer()

    def steered(
        self, choice: str | Mapping[str, float] | None = None, *, ablate: str | Sequence[str] = (), **options: Any
    ) -> AbstractContextManager[None]:
        """Steer within a ``with`` block; see :meth:`RoutedActorCriticPolicy.steered`."""
        return self.policy.steered(choice, ablate=ablate, **options)
