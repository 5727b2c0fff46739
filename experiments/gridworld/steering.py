"""Steer a loaded agent as the command line asks."""

from __future__ import annotations

from routed_rl.experiments.gridworld.options import Steered
from routed_rl.rl import RoutedAlgorithm


def steer(model: RoutedAlgorithm, command: Steered) -> str:
    """Steer a loaded model as the command line asks. Return the name of the steered policy.

    Raises:
        ValueError: if a module is unknown, or if two options exclude each other.
    """
    choice, ablate, avoid = command.steer, command.ablate, command.avoid
    if choice is not None and ablate is not None:
        raise ValueError(f"--steer {choice} and --ablate {ablate} exclude each other; give only one of them")
    if avoid is not None and choice is None:
        raise ValueError(f"--avoid {avoid} needs --steer; name the module to act with, as in --steer diamond")
    if choice is not None:
        model.steer(choice, avoid={} if avoid is None else {avoid: command.strength})
        return f"steer:{choice}" if avoid is None else f"steer:{choice}, avoid:{avoid}"
    if ablate is not None:
        model.ablate(ablate)
        return f"ablate:{ablate}"
    return "unsteered"
