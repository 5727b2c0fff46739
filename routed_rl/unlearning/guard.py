"""Whether a suppressor did what it is for: less of the topic, and most of the rest."""

from __future__ import annotations


class SuppressionError(ValueError):
    """A suppressor did nothing, or collapsed the model."""


def check_suppression(
    forget: tuple[float, float],
    retain: tuple[float, float],
    ignorance: float,
    *,
    forget_left: float = 0.9,
    retain_left: float = 0.5,
) -> None:
    """See that a suppressor neither did nothing nor collapsed the model.

    What is left of a performance is 1 where it is as before, and 0 where the model knows nothing any more.

    Args:
        forget: the performance before and after on what is to be forgotten, in any measure: accuracy or loss.
        retain: and on what is to be retained.
        ignorance: the measure of a model that knows nothing: 0, or chance, for accuracy; ``log V`` for a loss.
        forget_left: how much of the first may be left.
        retain_left: how much of the second must be left.

    Raises:
        SuppressionError: in one sentence, if more is left of the first or less of the second, or they are no numbers.
        ValueError: if the model knew nothing before.

    >>> check_suppression((1.0, 0.02), (1.0, 0.97), 0.0)
    """
    left = []
    for name, (before, after) in (("forget", forget), ("retain", retain)):
        if before == ignorance:
            raise ValueError(f"a {name} performance of {before:.4g} is that of a model that knows nothing")
        left.append((after - ignorance) / (before - ignorance))
    if not left[1] >= retain_left:
        raise SuppressionError(
            f"suppression collapsed the model: its retain performance went from {retain[0]:.4g} to {retain[1]:.4g}, "
            f"where {ignorance:.4g} is to know nothing; lower the learning rate, or weigh the retain term more"
        )
    if not left[0] <= forget_left:
        raise SuppressionError(
            f"suppression did nothing: the forget performance went from {forget[0]:.4g} to {forget[1]:.4g}, "
            f"where {ignorance:.4g} is to know nothing; raise the learning rate or take more steps"
        )
