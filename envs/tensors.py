"""The Diamond/Ghost world on one device: state, actions and observations are torch tensors that stay on the device.

Shapes: ``E`` environments, ``P`` observation planes of ``C`` cells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Unpack, overload

import numpy as np
import torch
from gymnasium.error import ResetNeeded
from torch import Tensor

from routed_rl.envs import dynamics
from routed_rl.envs.batch import EpisodeEnds
from routed_rl.envs.dynamics import State
from routed_rl.envs.sb3 import DiamondGhostVecEnv, LazyInfos
from routed_rl.envs.world import World, WorldOptions


class TensorEnds(NamedTuple):
    """How episodes ended in one step, with an entry for all E environments.

    Where an episode ended, the entries have the meaning of ``EpisodeEnds``. Elsewhere outcome is -1, and overseen and
    truncated are false.
    """

    rows: slice  # all
    outcome: Tensor  # (E,) int64, -1 for none
    overseen: Tensor  # (E,) bool
    truncated: Tensor  # (E,) bool
    length: Tensor  # (E,) int64
    reward: Tensor  # (E,) float32
    final_obs: Tensor  # (E, P*C) float32: the observation before any reset


def advance(world: World, state: State, action: Tensor) -> tuple[State, Tensor, Tensor, TensorEnds]:
    """Take one step with autoreset; return the new state, observations ``(E, P*C)``, dones ``(E,)`` and the ends.

    Shapes never depend on data, so the CPU does not wait for the device. For this, the start of the next episode is
    computed for every environment, and used only where an episode ended.
    """
    moved, transition = dynamics.step(world, state, action)
    done = transition.terminated | transition.truncated
    fresh = dynamics.reset(world, state.key, state.episode + 1)
    after = State(
        *(torch.where(done[:, None] if old.ndim > 1 else done, new, old) for old, new in zip(moved, fresh, strict=True))
    )
    ends = TensorEnds(
        rows=slice(None),
        outcome=transition.outcome,
        overseen=transition.overseen,
        truncated=transition.truncated,
        length=moved.steps,
        reward=transition.reward,
        final_obs=dynamics.observe(world, moved),
    )
    return after, dynamics.observe(world, after), done, ends


class TensorInfos(Sequence[dict[str, Any]]):
    """Infos whose ``ends`` are tensors. Reading an info dict waits for the device.

    Attributes:
        outcome_names: the terminal kinds, in the order of their outcome numbers.
    """

    def __init__(self, ends: TensorEnds, dones: Tensor, outcome_names: tuple[str, ...]) -> None:
        self.ends = ends
        self.outcome_names = outcome_names
        self._dones = dones
        self._lazy: LazyInfos | None = None

    def __len__(self) -> int:
        return len(self._dones)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if self._lazy is None:
            rows = np.flatnonzero(self._dones.cpu().numpy())
            ended = (tensor.cpu().numpy()[rows] for tensor in self.ends[1:])
            self._lazy = LazyInfos(EpisodeEnds(rows, *ended), len(self), self.outcome_names)
        return self._lazy[index]


class DiamondGhostTensorVecEnv(DiamondGhostVecEnv):
    """A :class:`DiamondGhostVecEnv` whose actions, observations, rewards and dones are tensors on ``device``.

    It draws the same episodes. ``infos.ends`` have an entry for every environment. Use it to train this project's
    learners. Code that expects numpy (evaluation, other learners) needs :class:`DiamondGhostVecEnv`.

    Args:
        num_envs: the number of environments.
        device: the device of the tensors.

    The other arguments, and the errors, are those of :class:`DiamondGhostVecEnv`.
    """

    speaks_tensors = True
    """tells learners that steps take and give tensors"""

    def __init__(
        self,
        num_envs: int,
        device: str | torch.device,
        seed: int | None = None,
        render_mode: str | None = None,
        **options: Unpack[WorldOptions],
    ) -> None:
        super().__init__(num_envs, seed, render_mode, **options)
        self.device = torch.device(device)
        self._state: State | None = None

    def reset(self) -> Tensor:  # type: ignore[override]
        self._to_host()
        obs = super().reset()
        self._to_device()
        return torch.from_numpy(obs).to(self.device)

    def step_wait(self) -> tuple[Tensor, Tensor, Tensor, TensorInfos]:  # type: ignore[override]
        """Return observations (E, P*C) float32 after the autoreset, rewards (E,) float32, dones (E,) bool, infos.

        Raises:
            ValueError: if the actions are not E int64 numbers on this device. Their values are not checked.
        """
        if self._state is None:
            raise ResetNeeded("call reset() first: the environment has no state yet")
        actions: Any = self._actions
        fits = isinstance(actions, Tensor) and actions.shape == (self.num_envs,) and actions.dtype == torch.int64
        if not fits or actions.device.type != self.device.type:
            raise ValueError(f"actions must be a tensor of {self.num_envs} int64 on {self.device}, got {actions!r}")
        self._state, obs, dones, ends = advance(self.world, self._state, actions)
        return obs, ends.reward, dones, TensorInfos(ends, dones, self.outcome_names)

    def get_images(self) -> list[np.ndarray]:
        self._to_host()
        return super().get_images()

    def get_state(self) -> dict[str, np.ndarray]:
        self._to_host()
        return super().get_state()

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        super().set_state(state)
        self._to_device()

    def env_method(
        self, method_name: str, *args: Any, indices: int | Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        self._to_host()
        return super().env_method(method_name, *args, indices=indices, **kwargs)

    def _to_host(self) -> None:
        if self._state is not None:
            names = ("key", "episode", "steps", "agent")
            super().set_state({name: getattr(self._state, name).cpu().numpy() for name in names})

    def _to_device(self) -> None:
        self._state = State(*(torch.from_numpy(array.copy()).to(self.device) for array in self._batch.state))
