"""Suppression methods as the user names them, with the user's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from routed_rl.lm.suppressors import METHODS, Suppressor
from routed_rl.lm.training import Training
from routed_rl.wording import did_you_mean

OF_RECIPE = ("steps", "learning_rate")
Method = str | type[Suppressor] | Suppressor
"""A suppression method: its name, its class, or the class with settings."""


def made_method(method: Method) -> tuple[Suppressor, str]:
    """Return a method with its settings, and its short name; ValueError as :meth:`Registry.find`."""
    if isinstance(method, Suppressor):
        return method, METHODS.find(type(method), "method").name
    found = METHODS.find(method, "method")
    return found.kind(), found.name


def with_settings(suppressor: Suppressor, name: str, settings: Mapping[str, Any]) -> tuple[Suppressor, Training]:
    """Return a method and its training with these settings. Raise ValueError for settings that it does not have."""
    known = [*OF_RECIPE, *(field.name for field in fields(suppressor))]
    if unknown := [setting for setting in settings if setting not in known]:
        nearest = did_you_mean(unknown[0], known)
        raise ValueError(f"{name} has no setting {unknown[0]!r}; its settings are {', '.join(known)}{nearest}")
    recipe = replace(suppressor.recipe, **{name: settings[name] for name in OF_RECIPE if name in settings})
    return replace(suppressor, **{name: of for name, of in settings.items() if name not in OF_RECIPE}), recipe
