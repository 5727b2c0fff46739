"""The options of ``routed-rl train``, which other commands build runs from, and their presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

MethodName = Literal[
    "routing",
    "naive",
    "naive-early-stopped",
    "penalty",
    "screening",
    "filtering",
    "oracle",
    "oracle-filtered",
    "no-gate",
    "no-routing",
    "no-gate-no-routing",
    "placebo",
    "shuffled",
]
WorldName = Literal["gridworld", "trap", "absent", "corner", "minigrid", "room"]
EARLY_STOPPED = "naive-early-stopped"
CONTRAST = 4.0
"""Strength of contrastive steering, fixed for all levels and worlds."""


@dataclass(frozen=True)
class Learner:
    """Hyperparameters of the learner; the defaults are the preset's, one set for every oversight level."""

    algorithm: Literal["ppo", "reinforce"] = "ppo"
    """proximal policy optimisation, or the paper's policy gradient (one step per rollout, on all of it)"""
    networks: Literal["mlp", "paper", "symbolic"] = "mlp"
    """two hidden layers everywhere; the paper's (section F; its value network is affine, as in the public code); or
    two hidden layers on a shared encoder of MiniGrid's images"""
    n_envs: int = 256
    """parallel environments"""
    n_steps: int = 32
    """steps per environment and update"""
    batch_size: int = 2048
    """steps per gradient step (ppo)"""
    n_epochs: int = 2
    """passes over each rollout (ppo)"""
    learning_rate: float = 2e-3
    """Adam's step size"""
    gamma: float = 0.97
    """discount"""
    gae_lambda: float = 0.95
    """GAE parameter"""
    clip_range: float = 0.2
    """clipping of the probability ratio (ppo)"""
    max_grad_norm: float | None = 0.5
    """gradient clipping; None: none"""
    bootstrap: bool = True
    """credit an episode cut by the rollout's end or the step cap with the value of the rest; the paper: with 0"""
    entropy: tuple[float, float] = (0.03, 0.02)
    """weight of the entropy bonus, at the start and (linearly) at the end"""
    value_coef: float = 0.5
    """weight of the value loss"""
    gate_coef: float = 0.3
    """weight of the gate's loss on labelled steps: cross-entropy, as in the public code (the paper drops its sign)"""
    hidden: int = 64
    """width of the two hidden layers of each module and the gate, and of the value network's first ones"""
    unfinished: Literal["unlabelled", "hold"] = "unlabelled"
    """episodes cut by a rollout's end: learn their steps unlabelled now (the paper), or hold them back"""
    replay_steps: int = 6
    """gradient steps per update on replayed labelled episodes; 0: no replay"""
    replay_batch: int = 256
    """replayed steps per label and gradient step"""
    replay_capacity: int = 4096
    """labelled steps kept per label"""


PresetName = Literal["quick", "paper", "minigrid"]
NOT_IDENTITY = ("seed", "out", "force", "parallel_seeds")
"""Options of a run that are not part of its configuration."""


@dataclass(frozen=True)
class Train:
    """Train one agent in the Diamond/Ghost world and evaluate it; continues a run that was interrupted."""

    method: MethodName = "routing"
    """how partial oversight is used (docs/oversight.md explains each)"""
    oversight: float = 0.05
    """probability that a terminal is overseen"""
    seed: int = 0
    """fixes everything random"""
    preset: PresetName = "quick"
    """family of hyperparameters, which are the defaults of the other options: "quick", PPO, a minute on one core;
    "paper", every setting of Cloud et al. 2024, 328 M steps. Where paper and public code disagree: an episode has 32
    steps (the code's run 33), and a new episode's first action is chosen from its first observation (the code's:
    from the old one's last); the value network and entropy learn from dropped episodes too. "minigrid", PPO from the
    images of MiniGrid's player, who turns and sees a part of the grid, ten minutes"""
    total_steps: int = 2_000_000
    """environment steps, rounded up to whole updates; oracle-filtered takes this times the oversight"""
    out: Path | None = None
    """run directory (default: runs/METHOD-CONFIGHASH-sSEED)"""
    force: bool = False
    """start over; the old directory is kept under another name"""
    unlabelled: Literal["all", "none"] = "all"
    """what episodes without label teach: every module (the paper), or none"""
    miss_rate: float = 0.0
    """probability that a label is lost"""
    flip_rate: float = 0.0
    """probability that a label is replaced by a wrong one"""
    hard_first: bool = False
    """lost and wrong labels fall on long episodes, at the same mean rate (at most 0.5)"""
    world: WorldName = "gridworld"
    """the batched gridworld; it with a second bad terminal ("trap"); with a supervisor who watches whole episodes or
    none ("absent"); with a Diamond that lies in the corner unless someone watches, tested where it never does
    ("corner"); the first task on MiniGrid, one Python object per environment; or it with a wall that hides things
    ("room")"""
    size: int = 5
    """side of the grid"""
    max_steps: int | None = None
    """step cap of an episode; None: 32 in the gridworld, four times its cells on MiniGrid, where turning takes steps"""
    spurious_oversight: float = 0.0
    """probability that a cell without terminal looks overseen"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where environment, rollout and learning happen; MiniGrid's environment is always on the CPU"""
    parallel_seeds: int = 1
    """train as many runs, with seeds from --seed on, as one batched computation, which is for GPUs (a processor gains
    little). Each is what it is alone but for rounding; with --out DIR they are DIR/s0, DIR/s1, …"""
    learner: Learner = field(default_factory=Learner)
    """the learner's hyperparameters"""

    def config(self) -> dict[str, Any]:
        """What, with the seed, the run depends on, as JSON."""
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
"""What the options of ``train`` are unless given, by preset."""
