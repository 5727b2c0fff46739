"""What users pass as a method: a suppression method or a procedure, by name, as a class, or with settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from routed_rl.errors import UserError
from routed_rl.lm.suppressors import Suppressor
from routed_rl.lm.training import Training
from routed_rl.unlearning.procedures import PROCEDURES, Procedure, made_suppressor
from routed_rl.wording import did_you_mean

OF_RECIPE = ("steps", "learning_rate")
Method = str | type[Suppressor] | Suppressor
"""A suppression method: its name, its class, or the class with settings."""
AnyMethod = Method | type[Procedure] | Procedure
"""A suppression method or a procedure."""
Made = TypeVar("Made", bound=Suppressor | Procedure)


def made_method(method: AnyMethod) -> tuple[Suppressor, str]:
    """Return a suppression method with its settings, and its short name.

    Raises:
        ValueError: as :meth:`Registry.find`, or for a procedure.
    """
    if (procedure := _procedure(method)) is not None:
        raise UserError(
            f"method {procedure[1]!r} is a procedure of its own stages, which only unlearn(…) runs: pass a suppression "
            "method here"
        )
    try:
        return made_suppressor(method, "method")  # type: ignore[arg-type]
    except ValueError as error:
        if not isinstance(method, str) or ":" in method:
            raise
        raise UserError(f"{error}; unlearn(…) also takes the procedures {', '.join(PROCEDURES)}") from error


def made_any(method: AnyMethod) -> tuple[Suppressor | Procedure, str]:
    """Return a suppression method or a procedure with its settings, and its short name; ValueError as made_method."""
    return _procedure(method) or made_method(method)


def _procedure(method: Any) -> tuple[Procedure, str] | None:
    """Return a procedure with its settings, and its short name; None for anything else."""
    if isinstance(method, str):
        return (PROCEDURES[method](), method) if method in PROCEDURES else None
    kind = method if isinstance(method, type) else type(method)
    if not issubclass(kind, Procedure):
        return None
    name = next((name for name, own in PROCEDURES.items() if own is kind), kind.__name__)
    return (method() if isinstance(method, type) else method), name


def with_settings(method: Made, name: str, settings: Mapping[str, Any]) -> tuple[Made, Training]:
    """Return a method and its training with these settings. Raise ValueError for settings that it does not have."""
    known = [*OF_RECIPE, *(field.name for field in fields(method))]
    if unknown := [setting for setting in settings if setting not in known]:
        nearest = did_you_mean(unknown[0], known)
        raise ValueError(f"{name} has no setting {unknown[0]!r}; its settings are {', '.join(known)}{nearest}")
    method = replace(method, **{name: of for name, of in settings.items() if name not in OF_RECIPE})
    # After its own settings, because a procedure has the training of its method.
    return method, replace(method.recipe, **{name: settings[name] for name in OF_RECIPE if name in settings})
