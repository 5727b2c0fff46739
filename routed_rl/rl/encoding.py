"""Write constructor arguments and spaces as JSON, and read them back. Nothing is pickled.

Classes and schedules are saved by name. So loading can build only registered ones, and policies, features extractors
and optimizers that the program has imported.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from routed_rl.rl.networks import ACTIVATIONS, MlpEncoder, SymbolicImageEncoder
from routed_rl.runs import CheckpointError
from routed_rl.runs.files import StrPath

POINTS = 1000
"""Steps from 0 to 1, at which the values of a function are saved."""


class TableSchedule:
    """A schedule that is linear between some values. Loading gives it in place of a function.

    Args:
        values: at ``len(values)`` equal steps of the remaining progress, from 0 (the end) to 1 (the start).
        name: of the function.

    Raises:
        ValueError: for less than two values, or one that is no finite number.
    """

    def __init__(self, values: Sequence[float], name: str) -> None:
        if len(values) < 2 or not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise ValueError(f"the values of the schedule {name!r} must be two or more finite numbers")
        self.values, self.__name__ = list(values), name

    def __call__(self, progress: float) -> float:
        """Return the value at a remaining progress."""
        return float(np.interp(progress, np.linspace(0.0, 1.0, len(self.values)), self.values))

    def __repr__(self) -> str:
        return f"TableSchedule({self.__name__}: {len(self.values)} values from {self.values[-1]} to {self.values[0]})"


SCHEDULES: dict[str, type[Any]] = {"linear": LinearSchedule, "table": TableSchedule}
"""Name → schedule class. Add your own here; its attributes must be the arguments of its constructor."""

CLASSES: dict[str, type[Any]] = {
    "CombinedExtractor": CombinedExtractor,
    "FlattenExtractor": FlattenExtractor,
    "MlpEncoder": MlpEncoder,
    "NatureCNN": NatureCNN,
    "SymbolicImageEncoder": SymbolicImageEncoder,
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "RMSprop": torch.optim.RMSprop,
    "SGD": torch.optim.SGD,
    **{activation.__name__: activation for activation in ACTIVATIONS.values()},
}
"""Name → class that may be the policy (``routed_rl.rl.policies`` adds ours) or a value in ``policy_kwargs``.

A policy, features extractor or optimizer of your own is saved by its module and name. A program that loads the model
must have imported it. Only one that was defined within a function needs a name here, before you make a model with it.
"""
KINDS = (ActorCriticPolicy, BaseFeaturesExtractor, torch.optim.Optimizer)
"""What a class without a registered name must be, so that a checkpoint cannot name any other class of the program."""


def encode(name: str, value: Any) -> Any:
    """Return ``value`` as JSON; raise a ValueError that quotes ``name`` if :func:`decode` could not restore it."""
    if isinstance(value, FloatSchedule):
        return encode(name, value.value_schedule)
    if isinstance(value, ConstantSchedule):
        return float(value.val)
    if isinstance(value, TableSchedule):
        return {"schedule": "table", "values": value.values, "name": value.__name__}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return {key: encode(f"{name}.{key}", item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(name, item) for item in value]
    for registered, cls in SCHEDULES.items():
        if type(value) is cls:
            return _encode_schedule(name, registered, value)
    for registered, cls in CLASSES.items():
        if value is cls:
            return {"class": registered}
    if isinstance(value, type) and _imported(place := f"{value.__module__}:{value.__qualname__}") is value:
        return {"class": place}
    raise ValueError(f"{name}={' '.join(repr(value).split())} cannot be saved: {_advice(value)}")


def encode_function(name: str, function: Callable[[float], float]) -> dict[str, Any]:
    """Return a function of the remaining progress, or an object like one, as JSON: :data:`POINTS` + 1 of its values.

    Raises:
        ValueError: if a value is no finite number.
    """
    try:
        values = [float(function(step / POINTS)) for step in range(POINTS + 1)]
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ValueError(f"{name}={function!r} must return a number for progress from 0 to 1: {error}") from error
    if not np.isfinite(values).all():
        bad = next(step / POINTS for step, value in enumerate(values) if not math.isfinite(value))
        raise ValueError(f"{name}={function!r} must return finite numbers, got {function(bad)!r} for progress {bad}")
    return {"schedule": "table", "values": values, "name": getattr(function, "__name__", repr(function))}


def _imported(place: str) -> type[Any] | None:
    """Return the class of :data:`KINDS` at MODULE:NAME, if this program has imported it. No code of the module runs."""
    module, _, name = place.partition(":")
    found: Any = sys.modules.get(module)
    for part in name.split("."):  # not by getattr: modules and classes may have code for that
        found = vars(found).get(part) if isinstance(found, (ModuleType, type)) else None
    return found if isinstance(found, type) and issubclass(found, KINDS) else None


def _encode_schedule(name: str, registered: str, schedule: Any) -> dict[str, Any]:
    attributes = encode(name, vars(schedule))
    try:
        same = encode(name, vars(type(schedule)(**attributes))) == attributes
    except TypeError:
        same = False
    if not same:
        raise ValueError(
            f"{name}={' '.join(repr(schedule).split())} cannot be saved: the arguments of the constructor of "
            f"{type(schedule).__name__} must be its attributes, which are {', '.join(attributes) or 'none'}"
        )
    return {"schedule": registered, **attributes}


def _advice(value: Any) -> str:
    """Return what to do so that a value can be saved."""
    here = "before you make the model, name the class: routed_rl.rl.encoding"
    if isinstance(value, type):
        return f"{here}.CLASSES[{value.__name__!r}] = {value.__name__}"
    return "use numbers, strings, None, lists and dicts of these, registered classes and schedules"


def decode(value: Any) -> Any:
    """Return the value that :func:`encode` saved; raise a CheckpointError for a name that is not registered."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    for kind, registry in (("schedule", SCHEDULES), ("class", CLASSES)):
        if kind in value:
            found = registry.get(value[kind]) or (_imported(str(value[kind])) if kind == "class" else None)
            if found is None:
                names = "CLASSES" if kind == "class" else "SCHEDULES"
                raise CheckpointError(
                    f"the checkpoint names the {kind} {value[kind]!r}, which is not known here: before you load it, "
                    f"import your {kind}, or name it in routed_rl.rl.encoding.{names}"
                )
            return found(**{k: v for k, v in value.items() if k != kind}) if kind == "schedule" else found
    return {key: decode(item) for key, item in value.items()}


def encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these, as JSON; else raise a ValueError."""
    if isinstance(space, spaces.Dict):
        return {"type": "Dict", "spaces": [[name, encode_space(part)] for name, part in space.items()]}
    if isinstance(space, spaces.Box):
        return {
            "type": "Box",
            "low": _bound(space.low),
            "high": _bound(space.high),
            "shape": list(space.shape),
            "dtype": str(space.dtype),
        }
    if isinstance(space, spaces.Discrete):
        return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, spaces.MultiDiscrete):
        starts = {"start": space.start.tolist(), "dtype": str(space.dtype)}
        return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), **starts}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "MultiBinary", "n": list(space.shape) if len(space.shape) > 1 else int(space.n)}
    raise ValueError(f"space {space} cannot be saved: only Box, Discrete, MultiDiscrete, MultiBinary and Dict can")


def _bound(bound: np.ndarray) -> Any:
    # JSON has no infinity, so it becomes a string. A bound that is the same everywhere is written once.
    values = [v if math.isfinite(v) else str(v) for v in bound.flatten().tolist()]
    return values[0] if len(set(values)) == 1 else values


def decode_space(data: Mapping[str, Any]) -> spaces.Space[Any]:
    """Return the space that :func:`encode_space` saved."""
    kind, options = data.get("type"), {key: value for key, value in data.items() if key != "type"}
    if kind == "Box":
        shape, dtype = tuple(options["shape"]), np.dtype(options["dtype"])
        low, high = (
            np.broadcast_to(
                # Not by float64 for integers: it cannot hold the bounds of int64.
                np.array(options[side], dtype=np.float64 if dtype.kind == "f" else dtype),
                (int(np.prod(shape)),) if isinstance(options[side], list) else shape,
            )
            .reshape(shape)
            .astype(dtype)
            for side in ("low", "high")
        )
        return spaces.Box(low, high, shape, dtype.type)
    if kind == "Dict":
        return spaces.Dict({name: decode_space(part) for name, part in options["spaces"]})
    if kind in ("Discrete", "MultiDiscrete", "MultiBinary"):
        space: spaces.Space[Any] = getattr(spaces, kind)(**options)
        return space
    raise CheckpointError(f"the checkpoint names an unknown space {kind!r}")


@contextmanager
def same_architecture(path: StrPath) -> Iterator[None]:
    """Within the block, torch's error about weights that do not fit becomes a CheckpointError that quotes ``path``."""
    try:
        yield
    except RuntimeError as error:
        raise CheckpointError(
            f"{os.fspath(path)} holds weights of another architecture: {' '.join(str(error).split())}"
        ) from error
