"""MiniGrid's symbolic images as Box observations with the true number of categories."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

_HIGHEST = (max(OBJECT_TO_IDX.values()), max(COLOR_TO_IDX.values()), 3)  # the state is a door's, or a direction


class SymbolicImage(gym.ObservationWrapper[np.ndarray, Any, dict[str, Any]]):
    """Observes only the image of a MiniGrid environment: object types, colours and states, (H, W, 3) uint8.

    Unlike MiniGrid's ``ImgObsWrapper``, its Box has the true bounds (10, 5, 3) of the channels, not 255. So learners do
    not take it for a picture and divide it by 255, and ``SymbolicImageEncoder`` knows the categories.

    Args:
        env: a MiniGrid environment, which observes a Dict.
        mission: whether two constant planes show the object that the mission names: its type and its colour. The
            mission must end in a colour and a type, as in "go get a blue key".
    """

    state_attributes: ClassVar[tuple[str, ...]] = ()
    """attributes on which later steps depend: none"""

    def __init__(self, env: gym.Env[dict[str, Any], Any], mission: bool = False) -> None:
        super().__init__(env)
        self._mission = mission
        height, width, _ = env.observation_space["image"].shape
        high = np.array((*_HIGHEST, *_HIGHEST[:2]) if mission else _HIGHEST, dtype=np.uint8)
        high = np.broadcast_to(high, (height, width, len(high)))
        self.observation_space = spaces.Box(np.zeros_like(high), high, dtype=np.uint8)

    def observation(self, observation: dict[str, Any]) -> np.ndarray:
        """Return the image, with the two planes of the mission if they are shown."""
        image: np.ndarray = observation["image"]
        if not self._mission:
            return image
        *_, colour, kind = observation["mission"].split()
        wanted = np.array([OBJECT_TO_IDX[kind], COLOR_TO_IDX[colour]], dtype=np.uint8)
        return np.concatenate([image, np.broadcast_to(wanted, (*image.shape[:2], 2))], axis=-1)
