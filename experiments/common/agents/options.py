"""The options of ``routed-rl train`` and their presets. Other commands build their runs from these options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from routed_rl.options.oversight import MethodName

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
CONTRAST = 4.0
"""Strength of contrastive steering. One number serves all oversight levels and worlds."""


@dataclass(frozen=True)
class Learner:
    """Hyperparameters of the learner. The preset sets the defaults, the same for every oversight level."""

    algorithm: Literal["ppo", "reinforce"] = "ppo"
    """"ppo": proximal policy optimisation; "reinforce": the paper's policy gradient, one gradient step per rollout"""
    networks: Literal["mlp", "paper", "symbolic"] = "mlp"
    """"mlp": two hidden layers in every network; "paper": the networks of section F, with the affine value network of
    the public code; "symbolic": two hidden layers behind a shared encoder of MiniGrid images"""
    n_envs: int = 256
    """number of parallel environments"""
    n_steps: int = 32
    """length of a rollout: steps per environment and update"""
    batch_size: int = 2048
    """environment steps per gradient step (only ppo)"""
    n_epochs: int = 2
    """passes over each rollout (only ppo)"""
    learning_rate: float = 2e-3
    """learning rate of Adam"""
    gamma: float = 0.97
    """discount factor of the return"""
    gae_lambda: float = 0.95
    """lambda of generalised advantage estimation (GAE); 1: Monte Carlo returns"""
    clip_range: float = 0.2
    """clipping range of the probability ratio (only ppo)"""
    max_grad_norm: float | None = 0.5
    """maximum norm of the gradient; None: no gradient clipping"""
    bootstrap: bool = True
    """where the end of a rollout or the step limit cuts an episode, add the estimated value of the rest; the paper
    adds 0"""
    entropy: tuple[float, float] = (0.03, 0.02)
    """weight of the entropy bonus at the start and at the end of training; linear between them"""
    value_coef: float = 0.5
    """weight of the value loss"""
    gate_coef: float = 0.3
    """weight of the gate loss, the cross-entropy on labelled steps; its sign is that of the public code"""
    hidden: int = 64
    """width of the hidden layers of the modules, the gate and the value network (networks "paper": the second layer
    of the value network has width 32)"""
    unfinished: Literal["unlabelled", "hold"] = "unlabelled"
    """for episodes that the end of a rollout cuts. "unlabelled": learn their steps now, without a label (the
    paper). "hold": wait until the episode has ended"""
    replay_steps: int = 6
    """gradient steps per update on replayed labelled episodes; 0: no replay"""
    replay_batch: int = 256
    """replayed environment steps per label and gradient step"""
    replay_capacity: int = 4096
    """size of the replay buffer: environment steps per label"""
    solo: float = 0.0
    """for methods that route: share of the environments in which one module acts alone. There it is paid 1 for its own
    outcome and -1 for another, by label. It learns nothing from an episode that reached an outcome without a label"""


PresetName = Literal["quick", "paper", "minigrid"]
NOT_IDENTITY = ("seed", "out", "force", "parallel_seeds")
"""Options of a run that do not belong to its configuration."""


@dataclass(frozen=True)
class Train:
    """Train one agent in the Diamond/Ghost world and evaluate it. An interrupted run continues."""

    method: MethodName = "routing"
    """method that uses the partial oversight; docs/oversight.md explains each method"""
    oversight: float = 0.05
    """oversight level: probability that a terminal state is overseen"""
    seed: int = 0
    """random seed of the run"""
    preset: PresetName = "quick"
    """set of defaults for the other options. "quick": PPO, one minute on one core. "paper": every setting of Cloud et
    al. 2024, 328 million steps. "minigrid": PPO on MiniGrid images, where the player turns and sees a part of the
    grid; ten minutes. The paper and its public code differ. Here an episode has 32 steps (public code: 33). The first
    action of an episode follows from its first observation (public code: from the last observation of the old
    episode). The value loss and the entropy bonus also use dropped episodes"""
    total_steps: int = 2_000_000
    """environment steps, rounded up to whole updates; oracle-filtered multiplies the number by --oversight"""
    out: Path | None = None
    """run directory; None: runs/METHOD-CONFIGHASH-sSEED"""
    force: bool = False
    """start again from zero; the old directory is renamed, not deleted"""
    unlabelled: Literal["all", "none", "predicted"] = "all"
    """modules that learn from unlabelled episodes: "all" as in the paper, or "none" of them. "predicted": an outcome
    model learns from the labelled episodes, and labels the others where it is sure"""
    reward: Literal["outcome", "environment"] | None = None
    """what an episode without a label pays. "outcome": +1 at its end if it reached an outcome, or nothing with the
    methods filtering, reward-model and oracle. "environment": what the environment pays, step by step; these three
    methods do not change. None: "environment" in the world "camera", "outcome" in the others"""
    miss_rate: float = 0.0
    """label noise: probability that a label is lost"""
    flip_rate: float = 0.0
    """label noise: probability that a label is replaced by a wrong label"""
    hard_first: bool = False
    """label noise grows with the length of the episode; the mean rate stays the same and must be at most 0.5"""
    world: WorldName = "gridworld"
    """"gridworld": the batched Diamond/Ghost world. "trap": adds a second bad terminal state. "absent": an episode is
    overseen as a whole or not at all. "corner": the Diamond lies in the corner in every episode that is not overseen;
    in the test it never lies there. "tampering": an unwatched Ghost looks like the Diamond in the last observation of
    its episode. "unseen": as trap, but the second bad terminal state is never overseen. "camera": Camera Dropbox, where
    an agent is paid more if it first blinds a camera. "minigrid": the Diamond/Ghost
    task on MiniGrid, one Python object per environment. "room": as minigrid, with a wall that hides a part of the
    grid. The other names are known environments of others; docs/reference/worlds.md describes them"""
    size: int = 5
    """side of the grid, in cells"""
    max_steps: int | None = None
    """step limit of an episode; None: 32, or four steps per cell on MiniGrid, where turning takes steps too"""
    spurious_oversight: float = 0.0
    """probability that a cell without a terminal state is marked as overseen"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device of the environments, the rollouts and the learner; MiniGrid environments always run on the CPU"""
    parallel_seeds: int = 1
    """number of runs to train as one batched computation, with seeds from --seed on. A GPU gains much, a CPU gains
    little. Each run equals the run trained alone, up to rounding. With --out DIR the runs go to DIR/s0, DIR/s1, …"""
    learner: Learner = field(default_factory=Learner)
    """hyperparameters of the learner"""

    def config(self) -> dict[str, Any]:
        """Everything that the run depends on, except the seed, as JSON."""
        return {key: value for key, value in asdict(self).items() if key not in NOT_IDENTITY}


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
}
"""The default options of ``train``, by preset."""
