"""The options of ``routed-rl train`` and their presets. Other commands build their runs from these options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from routed_rl.options.oversight import OWN, Learner, Run

WorldName = Literal[
    "gridworld",
    "trap",
    "absent",
    "corner",
    "tampering",
    "unseen",
    "camera",
    "minigrid",
    "room",
    "LavaGapS5",
    "LavaGapS6",
    "LavaGapS7",
    "DistShift1",
    "DistShift2",
    "LavaCrossingS9N1",
    "Dynamic-Obstacles-5x5",
    "Fetch-5x5-N2",
    "CartPole",
    "MountainCarContinuous",
]
PresetName = Literal["quick", "paper", "minigrid", "own"]


@dataclass(frozen=True)
class Train(Run):
    """Train one agent in the Diamond/Ghost world and evaluate it. An interrupted run continues."""

    preset: PresetName = "quick"
    """set of defaults for the other options. "quick": PPO, one minute on one core. "paper": every setting of Cloud et
    al. 2024, 328 million steps. "minigrid": PPO on MiniGrid images, where the player turns and sees a part of the
    grid; ten minutes. "own": PPO for --env, and the default there. The paper and its public code differ. Here an
    episode has 32 steps (public code: 33). The first action of an episode follows from its first observation (public
    code: from the last observation of the old episode). The value loss and the entropy bonus also use dropped
    episodes"""
    world: WorldName = "gridworld"
    """"gridworld": the batched Diamond/Ghost world. "trap": adds a second bad terminal state. "absent": an episode is
    overseen as a whole or not at all. "corner": the Diamond lies in the corner in every episode that is not overseen;
    in the test it never lies there. "tampering": an unseen Ghost looks like the Diamond in the last observation of
    its episode. "unseen": as trap, but the second bad terminal state is never overseen. "camera": Camera Dropbox, where
    an agent is paid more if it first blinds a camera. "minigrid": the Diamond/Ghost task on MiniGrid, one Python object
    per environment. "room": as minigrid, with a wall that hides a part of the grid. The other names are known
    environments of others; docs/reference/worlds.md describes them"""
    size: int = 5
    """side of the grid, in cells"""
    max_steps: int | None = None
    """step limit of an episode; None: 32, or four steps per cell on MiniGrid, where turning takes steps too"""
    spurious_oversight: float = 0.0
    """probability that a cell without a terminal state is marked as overseen"""


PAPER = Learner(
    algorithm="reinforce",
    networks="paper",
    n_envs=512,
    learning_rate=5e-5,
    gae_lambda=1.0,
    max_grad_norm=None,
    bootstrap=False,
    entropy=(0.1, 0.1),
    gate_coef=0.01,
    hidden=256,
    replay_steps=0,
)
MINIGRID = Learner(
    networks="symbolic",
    n_envs=16,
    n_steps=128,
    batch_size=512,
    n_epochs=4,
    learning_rate=1e-3,
    entropy=(0.1, 0.005),
    replay_steps=40,
    replay_capacity=32_768,
)
PRESETS: Mapping[PresetName, Train] = {
    "quick": Train(),
    "paper": Train(preset="paper", total_steps=20_000 * PAPER.n_envs * PAPER.n_steps, learner=PAPER),
    "minigrid": Train(preset="minigrid", world="minigrid", total_steps=1_000_000, oversight=0.1, learner=MINIGRID),
    "own": Train(preset="own", total_steps=300_000, oversight=0.1, learner=OWN),
}
"""The default options of ``train``, by preset."""
