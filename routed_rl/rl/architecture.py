"""The arguments of Stable-Baselines3's policies: what they mean for a routed policy."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from torch import nn

from routed_rl.rl.networks import ACTIVATIONS

SDE_OPTIONS: dict[str, bool] = {"full_std": True, "use_expln": False, "squash_output": False}
"""Argument of state-dependent exploration → its default, the only value that it may have without ``use_sde=True``."""


def check_sde(given: Mapping[str, Any], action_space: spaces.Space[Any]) -> None:
    """Raise a ValueError unless the arguments of state-dependent exploration fit the actions and each other.

    Args:
        given: arguments of a policy. Only ``use_sde`` and :data:`SDE_OPTIONS` are read.
        action_space: the actions.
    """
    if given.get("use_sde"):
        if not isinstance(action_space, spaces.Box):
            raise ValueError(f"use_sde=True needs a Box action space, got {action_space}")
        return
    for name, default in SDE_OPTIONS.items():
        if given.get(name, default) != default:
            raise ValueError(f"{name}={given[name]!r} needs use_sde=True")


def layer_sizes(net_arch: Any, given: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return Stable-Baselines3's ``net_arch`` as ``hidden`` (each module and the gate) and ``value_hidden``.

    As there, a list gives both networks the same sizes, and a network that a dict leaves out has no hidden layers.

    Args:
        net_arch: a list of sizes, or a dict with the keys ``"pi"`` and ``"vf"``.
        given: the arguments that the policy got.

    Raises:
        ValueError: if ``net_arch`` is anything else, or if the policy also got ``hidden`` or ``value_hidden``.
    """
    if both := [name for name in ("hidden", "value_hidden") if name in given]:
        raise ValueError(f"net_arch={net_arch!r} and {both[0]}={given[both[0]]!r} both set sizes: leave out one")
    if isinstance(net_arch, (list, tuple)) and len(net_arch) == 1 and isinstance(net_arch[0], dict):
        warnings.warn(f"net_arch={net_arch!r} has the old form, a dict in a list: pass the dict alone", stacklevel=2)
        net_arch = net_arch[0]
    sizes = net_arch if isinstance(net_arch, dict) else {"pi": net_arch, "vf": net_arch}
    lists = all(isinstance(layers, (list, tuple)) for layers in sizes.values())
    if not lists or not sizes.keys() <= {"pi", "vf"}:
        raise ValueError(f"net_arch must be a list of sizes, or a dict of lists with keys 'pi', 'vf', got {net_arch!r}")
    return tuple(sizes.get("pi", ())), tuple(sizes.get("vf", ()))


def activation_name(activation_fn: type[nn.Module], given: Mapping[str, Any]) -> str:
    """Return the name of an activation class; raise a ValueError if it has none, or if ``activation`` is given too."""
    if "activation" in given:
        raise ValueError(
            f"activation_fn={activation_fn!r} and activation={given['activation']!r} are one setting: leave out one"
        )
    for name, known in ACTIVATIONS.items():
        if activation_fn is known:
            return name
    classes = ", ".join(f"torch.nn.{known.__name__}" for known in ACTIVATIONS.values())
    raise ValueError(f"activation_fn must be one of {classes}, got {activation_fn!r}")
