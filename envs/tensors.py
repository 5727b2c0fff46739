"""The Diamond/Ghost world on one device: state, actions and observations are torch tensors that never leave it.

``E`` environments, ``P`` observation planes of ``C`` cells.
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
    """How the episodes that ended in one step did, for all E environments; as in ``EpisodeEnds`` where one ended."""

    rows: slice  # all
    outcome: Tensor  # (E,) int64, -1 for none
    overseen: Tensor  # (E,) bool
    truncated: Tensor  # (E,) bool
    length: Tensor  # (E,) int64
    reward: Tensor  # (E,) float32
    final_obs: Tensor  # (E, P*C) float32: the observation before any reset


def advance(world: World, state: State, action: Tensor) -> tuple[State, Tensor, Tensor, TensorEnds]:
    """One step with autoreset: the new state, its observation ``(E, P*C)``, ``dones`` ``(E,)`` and the ends.

    No shape depends on what happens, so that the host need not wait for the device: the next episode of every
    environment is computed, and those that ended take it.
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
    """Infos whose ``ends`` are tensors; whoever reads a dict waits for the device.

    Attributes:
        outcome_names: the terminal kinds, by outcome number.
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
    """:class:`DiamondGhostVecEnv` with tensors on ``device`` for actions, observations, rewards and dones.

    Draw for draw the same world. ``infos.ends`` hold all rows. It is there to train our learners; whatever expects
    numpy (evaluation, other learners) takes :class:`DiamondGhostVecEnv`.

    Args:
        num_envs: how many.
        device: where the tensors live.

    The other arguments, and what is raised, are those of :class:`DiamondGhostVecEnv`.
    """

    speaks_tensors = True

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
        """(obs (E, P*C) float32 after the autoreset, rewards (E,) float32, dones (E,) bool, infos).

        Raises:
            ValueError: for actions that are not E int64 on this device. Values are not looked at.
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
