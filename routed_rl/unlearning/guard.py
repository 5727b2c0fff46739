"""Check that a suppressor worked: forget performance fell, and most retain performance is left."""

from __future__ import annotations


class SuppressionError(ValueError):
    """A suppressor did nothing, or collapsed the model."""


def performance_left(before: float, after: float, ignorance: float) -> float:
    """Return how much of a performance is left: 1 if it is as before, 0 for a model that knows nothing.

    Args:
        before, after: the performance in any measure: accuracy or loss.
        ignorance: that of a model that knows nothing.

    Raises:
        ZeroDivisionError: if the model knew nothing before.
    """
    return (after - ignorance) / (before - ignorance)


def check_suppression(
    forget: tuple[float, float],
    retain: tuple[float, float],
    ignorance: float,
    *,
    forget_left: float = 0.9,
    retain_left: float = 0.5,
) -> None:
    """Raise an error if a suppressor did nothing or collapsed the model.

    What is left of a performance is 1 if it is as before, and 0 for a model that knows nothing.

    Args:
        forget: forget performance before and after, in any measure: accuracy or loss.
        retain: retain performance before and after.
        ignorance: the performance of a model that knows nothing: 0, or chance, for an accuracy; ``log V`` for a loss.
        forget_left: how much forget performance may be left.
        retain_left: how much retain performance must be left.

    Raises:
        SuppressionError: if more forget performance or less retain performance is left, or a number is NaN.
        ValueError: if the model knew nothing before.

    >>> check_suppression((1.0, 0.02), (1.0, 0.97), 0.0)
    """
    left = []
    for name, (before, after) in (("forget", forget), ("retain", retain)):
        if before == ignorance:
            raise ValueError(f"the {name} performance before suppression is {before:.4g}, as if the model knew nothing")
        left.append(performance_left(before, after, ignorance))
    if not left[1] >= retain_left:
        raise SuppressionError(
            f"suppression collapsed the model: its retain performance went from {retain[0]:.4g} to {retain[1]:.4g}, "
            f"and a model that knows nothing has {ignorance:.4g}; lower the learning rate, or raise the retain weight"
        )
    if not left[0] <= forget_left:
        raise SuppressionError(
            f"suppression did nothing: the forget performance went from {forget[0]:.4g} to {forget[1]:.4g}, "
            f"and a model that knows nothing has {ignorance:.4g}; raise the learning rate or take more steps"
        )
