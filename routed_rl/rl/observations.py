"""Observations and actions: which spaces a learner takes, and how it stores observations as one tensor."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, NatureCNN
from torch import Tensor

SINGLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
NAMES = "Box, Discrete, MultiDiscrete or MultiBinary"
SIGNED = {torch.uint16: torch.int16, torch.uint32: torch.int32, torch.uint64: torch.int64}
SMALLEST_IMAGE = 36  # NatureCNN's convolutions leave nothing of a smaller one


class Observations:
    """Turns the observations of a space into one tensor, and back.

    Buffers, minibatches and checkpoints then need not know the space. An observation of a Dict becomes a row of bytes,
    so no number changes. Unsigned integers that torch cannot write by index become signed ones with the same bits. Any
    other observation stays as it is.

    Attributes:
        shape: the shape of one observation in the tensor.
        dtype: the tensor's dtype.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._parts: dict[str, tuple[int, int, torch.dtype, tuple[int, ...]]] = {}
        if not isinstance(space, spaces.Dict):
            self.shape, self._given = _shape(space), _dtype(space)
            self.dtype = SIGNED.get(self._given, self._given)
            return
        end = 0
        # Large numbers first, so that each part starts at a multiple of its numbers' size.
        for name, part in sorted(space.items(), key=lambda item: -_dtype(item[1]).itemsize):
            start, end = end, end + _dtype(part).itemsize * math.prod(_shape(part))
            self._parts[name] = (start, end, _dtype(part), _shape(part))
        self.shape, self.dtype = (8 * math.ceil(end / 8),), torch.uint8

    def pack(self, obs: Any, device: torch.device | str) -> Tensor:
        """Return observations as an environment gives them as a tensor ``(N, *shape)``.

        Args:
            obs: an array or tensor ``(N, …)``. For a Dict, a mapping of arrays, or an array of ``N`` mappings.
            device: the tensor's device.
        """
        if not self._parts:
            tensor = torch.as_tensor(obs, device=device)
            return tensor.view(SIGNED[tensor.dtype]) if tensor.dtype in SIGNED else tensor
        if isinstance(obs, np.ndarray):
            obs = {name: np.stack([row[name] for row in obs]) for name in self._parts}
        n = len(obs[next(iter(self._parts))])
        packed = torch.zeros(n, *self.shape, dtype=torch.uint8)
        for name, (start, end, dtype, _) in self._parts.items():
            packed[:, start:end].view(dtype).copy_(torch.as_tensor(obs[name]).reshape(n, -1))
        return packed.to(device)

    def unpack(self, obs: Any) -> Any:
        """Return a tensor of :meth:`pack` as the policy's networks take it: for a Dict, name → tensor ``(N, …)``."""
        if isinstance(obs, Mapping):
            return obs
        if not self._parts:
            return obs.view(self._given) if self._given in SIGNED and obs.dtype == self.dtype else obs
        return self._unpacked(obs)

    @torch.compiler.disable  # torch.compile may lay out the bytes differently, and then they have no view as numbers
    def _unpacked(self, obs: Tensor) -> dict[str, Tensor]:
        return {
            name: obs[:, start:end].view(dtype).reshape(len(obs), *shape)
            for name, (start, end, dtype, shape) in self._parts.items()
        }

    def arrays(self, obs: Tensor) -> Any:
        """Return a tensor of :meth:`pack` as a numpy environment gave it."""
        given = self.unpack(obs.cpu())
        return given.numpy() if isinstance(given, Tensor) else {name: part.numpy() for name, part in given.items()}


def _shape(space: spaces.Space[Any]) -> tuple[int, ...]:
    assert space.shape is not None
    return space.shape


def _dtype(space: spaces.Space[Any]) -> torch.dtype:
    return torch.from_numpy(np.zeros(0, space.dtype)).dtype


def _line(space: spaces.Space[Any]) -> str:
    # Spaces with array bounds print over several lines.
    return " ".join(str(space).split())


def check_spaces(observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
    """Raise a ValueError that names the space, unless a learner can learn from these observations and actions."""
    entries = observation_space.values() if isinstance(observation_space, spaces.Dict) else [observation_space]
    for entry in entries:
        if not isinstance(entry, SINGLE):
            raise ValueError(
                f"observation_space must be a {NAMES}, or a Dict of these without another Dict inside, "
                f"got {_line(observation_space)}"
            )
        if np.any(getattr(entry, "start", 0)):
            raise ValueError(
                f"observation_space must number its categories from 0, got {_line(entry)}: subtract the start"
            )
    if not isinstance(action_space, SINGLE):
        raise ValueError(f"action_space must be a {NAMES}, got {_line(action_space)}")
    if isinstance(action_space, spaces.Box) and not action_space.is_bounded():
        raise ValueError(f"action_space must have finite bounds, got {_line(action_space)}: clip it in a wrapper")
    for entry in (*entries, action_space):
        if isinstance(entry, spaces.MultiDiscrete) and len(entry.shape) != 1:
            raise ValueError(f"a MultiDiscrete space must have one dimension, got shape {entry.shape}: flatten it")
    if isinstance(action_space, spaces.MultiBinary) and len(action_space.shape) != 1:
        raise ValueError(f"a MultiBinary action_space must have one dimension, got {action_space}: flatten it")


def check_extractor(extractor: type, space: spaces.Space[Any], normalize_images: bool) -> None:
    """Raise a ValueError if Stable-Baselines3's convolutions cannot read the images of an observation space."""
    if not issubclass(extractor, (NatureCNN, CombinedExtractor)):
        return
    for entry in space.values() if isinstance(space, spaces.Dict) else [space]:
        image = is_image_space(entry, normalized_image=not normalize_images)
        if image and min(_shape(entry)[1:]) < SMALLEST_IMAGE:
            raise ValueError(
                f"NatureCNN needs images (channels, height, width) of at least {SMALLEST_IMAGE} x {SMALLEST_IMAGE}, "
                f"got shape {entry.shape}: use MlpPolicy, or an encoder of your own as features_extractor_class"
            )
        if not image and issubclass(extractor, NatureCNN):
            raise ValueError(
                f"policy and NatureCNN need images, a Box (channels, height, width) of uint8 from 0 to 255, or of any "
                f"numbers with normalize_images=False, got {_line(entry)}: use MlpPolicy"
            )
