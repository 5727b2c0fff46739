"""Batched worlds as Stable-Baselines3 ``VecEnv``s, which build info dicts only when they are read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, Unpack, overload

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from routed_rl.envs.batch import Batch, EpisodeEnds
from routed_rl.envs.camera import CameraOptions, make_camera_world
from routed_rl.envs.camera_dropbox import CameraBatch
from routed_rl.envs.rendering import FPS, check_render_mode, render, rgb
from routed_rl.envs.scalar import spaces
from routed_rl.envs.world import WorldOptions, make_world


class LazyInfos(Sequence[dict[str, Any]]):
    """The infos of one step: E dicts, each built when it is first read.

    At the end of an episode a dict has ``outcome`` (a terminal's name or None), ``overseen``, ``terminal_observation``
    and ``TimeLimit.truncated``. At other steps it is empty.

    Attributes:
        outcome_names: the outcomes, in the order of their numbers.
    """

    def __init__(self, ends: EpisodeEnds, num_envs: int, outcome_names: tuple[str, ...]) -> None:
        self._ends = ends
        self._num_envs = num_envs
        self.outcome_names = outcome_names
        self._built: dict[int, dict[str, Any]] = {}
        self._positions: dict[int, int] | None = None

    @property
    def ends(self) -> EpisodeEnds:
        """The ended episodes as arrays. A fast learner reads these and no dict.

        Wrappers (``VecNormalize``, ``VecFrameStack``) change entries of the dicts in place. So if dicts were read, the
        arrays are built from the dicts.
        """
        if not self._built or not len(self._ends.rows):
            return self._ends
        infos = [self[row] for row in self._ends.rows.tolist()]
        reached = [info["outcome"] for info in infos]
        return self._ends._replace(
            outcome=np.array(
                [-1 if name is None else self.outcome_names.index(name) for name in reached], dtype=np.int64
            ),
            overseen=np.array([info["overseen"] for info in infos], dtype=bool),
            final_obs=np.stack([info["terminal_observation"] for info in infos]),
        )

    def __len__(self) -> int:
        return self._num_envs

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        rows = range(self._num_envs)[index]
        if isinstance(rows, range):
            return [self[row] for row in rows]
        if rows not in self._built:
            self._built[rows] = self._build(rows)
        return self._built[rows]

    def __repr__(self) -> str:
        return repr(self[:])

    def _build(self, row: int) -> dict[str, Any]:
        if self._positions is None:
            self._positions = {row: i for i, row in enumerate(self._ends.rows.tolist())}
        i = self._positions.get(row)
        if i is None:
            return {}
        outcome = self._ends.outcome[i].item()
        return {
            "outcome": None if outcome < 0 else self.outcome_names[outcome],
            "overseen": self._ends.overseen[i].item(),
            "terminal_observation": self._ends.final_obs[i],
            "TimeLimit.truncated": self._ends.truncated[i].item(),
        }


class BatchVecEnv(VecEnv):
    """A Stable-Baselines3 ``VecEnv`` with the environments of one batch.

    ``seed(s)``, or the argument, seeds environment ``i`` with ``s + i`` at the next ``reset()``. Later resets start
    each environment's next episode. ``step`` returns :class:`LazyInfos`; their ``ends`` are arrays.

    Args:
        batch: a :class:`~routed_rl.envs.batch.Batch` with autoreset.
        seed: as for ``seed()``; None draws seeds at the first reset.
        render_mode: None, "ansi" or "rgb_array".

    Attributes:
        world: the world that all environments share.
        outcome_names: the outcomes, in the order of their numbers.

    Raises:
        ValueError: for another ``render_mode``.
    """

    def __init__(self, batch: Batch, seed: int | None, render_mode: str | None) -> None:
        self.world = batch.world
        self.outcome_names: tuple[str, ...] = self.world.names
        self.render_mode = check_render_mode(render_mode, ("ansi", "rgb_array"))
        self._batch = batch
        self._actions = np.zeros(0, dtype=np.int64)
        super().__init__(self._batch.num_envs, *spaces(self.world))
        self.metadata["render_fps"] = FPS
        if seed is not None:
            self.seed(seed)

    def reset(self) -> np.ndarray:
        obs = self._batch.reset(self._seeds, np.random.default_rng())
        self._reset_seeds()
        self._reset_options()
        return obs

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, LazyInfos]:
        """Return observations (E, P*C) float32 after the autoreset, rewards (E,) float32, dones (E,) bool, infos."""
        obs, transition, ends = self._batch.step(self._actions)
        dones = transition.terminated | transition.truncated
        return obs, transition.reward, dones, LazyInfos(ends, self.num_envs, self.outcome_names)

    def close(self) -> None:
        pass

    def get_images(self) -> list[np.ndarray]:
        state = self._batch.state
        return [rgb(self.world, state, row) for row in range(self.num_envs)]

    def get_state(self) -> dict[str, np.ndarray]:
        """Return the state as a few int64 arrays; :meth:`set_state` restores it exactly."""
        return self._batch.get_state()

    def set_state(self, state: Mapping[str, np.ndarray]) -> None:
        """Restore a state that :meth:`get_state` returned; raise a ValueError if it is not one."""
        self._batch.set_state(state)

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """Return an attribute of this object or of its world, repeated for each environment."""
        for holder in (self, self.world):
            if hasattr(holder, attr_name):
                return [getattr(holder, attr_name)] * len(list(self._get_indices(indices)))
        raise AttributeError(f"neither {type(self).__name__} nor its world has an attribute {attr_name!r}")

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> NoReturn:
        raise AttributeError(
            f"cannot set {attr_name!r}: the environments share one world, which cannot change; make a new "
            f"{type(self).__name__} with other options"
        )

    def env_method(
        self, method_name: str, *args: Any, indices: int | Iterable[int] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Return one frame for each environment; ``"render"`` is the only method that single environments have."""
        if method_name != "render":
            raise AttributeError(
                f"the environments have no method {method_name!r}: they are rows of one batch, and their only method "
                "is 'render'"
            )
        state = self._batch.state
        return [render(self.world, state, row, self.render_mode) for row in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[Any], indices: int | Iterable[int] | None = None) -> list[bool]:
        return [False] * len(list(self._get_indices(indices)))


class DiamondGhostVecEnv(BatchVecEnv):
    """The Diamond/Ghost world as a ``VecEnv`` of arrays.

    Args:
        num_envs: the number of environments.
        seed: as for ``seed()``; None draws seeds at the first reset.
        render_mode: None, "ansi" or "rgb_array".
        **options: the options of :func:`routed_rl.envs.make_world`.

    Raises:
        ValueError: for an option out of range.
    """

    def __init__(
        self,
        num_envs: int,
        seed: int | None = None,
        render_mode: str | None = None,
        **options: Unpack[WorldOptions],
    ) -> None:
        super().__init__(Batch(make_world(**options), num_envs), seed, render_mode)


class CameraDropboxVecEnv(BatchVecEnv):
    """:class:`~routed_rl.envs.CameraDropboxEnv` as a ``VecEnv`` of arrays.

    Args:
        num_envs: the number of environments.
        seed: as for ``seed()``; None draws seeds at the first reset.
        render_mode: None, "ansi" or "rgb_array".
        **options: the options of :func:`routed_rl.envs.camera.make_camera_world`.

    Raises:
        ValueError: for an option out of range.
    """

    def __init__(
        self,
        num_envs: int,
        seed: int | None = None,
        render_mode: str | None = None,
        **options: Unpack[CameraOptions],
    ) -> None:
        super().__init__(CameraBatch(make_camera_world(**options), num_envs), seed, render_mode)
