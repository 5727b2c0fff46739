"""Options of agents that train under partial oversight, and of studies of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from routed_rl.options import RUNS
from routed_rl.plugins import PluginName

MethodName = Literal[
    "routing",
    "naive",
    "naive-early-stopped",
    "penalty",
    "screening",
    "filtering",
    "reward-model",
    "oracle",
    "oracle-filtered",
    "no-gate",
    "no-routing",
    "no-gate-no-routing",
    "placebo",
    "shuffled",
]
EARLY_STOPPED = "naive-early-stopped"
"""Learns as naive does; labels only choose when it stops."""
CONTRAST = 4.0
"""Strength of contrastive steering. One number serves all oversight levels and worlds."""


@dataclass(frozen=True)
class Learner:
    """Hyperparameters of the learner. The preset sets the defaults, the same for every oversight level."""

    algorithm: Literal["ppo", "reinforce"] = "ppo"
    """"ppo": proximal policy optimisation; "reinforce": the paper's policy gradient, one gradient step per rollout"""
    networks: Literal["mlp", "paper", "symbolic", "auto"] = "mlp"
    """"mlp": two hidden layers in every network; "paper": the networks of section F, with the affine value network of
    the public code; "symbolic": two hidden layers behind a shared encoder of MiniGrid images; "auto": what the
    observations need, also for pictures and Dict observations"""
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
    outcome and -1 for another, by label. From an episode that reached an outcome without a label, it learns only if the
    end is novel to the outcome model"""


NOT_IDENTITY = ("seed", "out", "force", "extends", "parallel_seeds")
"""Options of a run that do not belong to its configuration."""


@dataclass(frozen=True)
class Run:
    """Train one agent under partial oversight and evaluate it. An interrupted run continues."""

    method: MethodName | PluginName = "routing"
    """method that uses the partial oversight; docs/oversight.md explains each method. MODULE:NAME is a Method of your
    own"""
    oversight: float = 0.05
    """oversight level: probability that a terminal state is overseen"""
    seed: int = 0
    """random seed of the run"""
    total_steps: int = 2_000_000
    """environment steps, rounded up to whole updates; oracle-filtered multiplies the number by --oversight"""
    out: Path | None = None
    """run directory; None: runs/METHOD-CONFIGHASH-sSEED"""
    force: bool = False
    """start again from zero; the old directory is renamed, not deleted"""
    extends: Path | None = None
    """finished run whose training continues in --out. Its other options must be repeated. --total-steps counts its
    steps too"""
    unlabelled: Literal["all", "none", "predicted"] = "all"
    """modules that learn from unlabelled episodes: "all" as in the paper, or "none" of them. "predicted": an outcome
    model learns from the labelled episodes, and labels the others where it is sure"""
    reward: Literal["outcome", "environment"] | None = None
    """what an episode without a label pays. "outcome": +1 at its end if it reached an outcome, or nothing with the
    methods filtering, reward-model and oracle. "environment": what the environment pays, step by step; these three
    methods do not change. None: "environment" in the world "camera", "outcome" elsewhere"""
    miss_rate: float = 0.0
    """label noise: probability that a label is lost"""
    flip_rate: float = 0.0
    """label noise: probability that a label is replaced by a wrong label"""
    hard_first: bool = False
    """label noise grows with the length of the episode; the mean rate stays the same and must be at most 0.5"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device of the environments, the rollouts and the learner; MiniGrid environments always run on the CPU"""
    parallel_seeds: int = 1
    """number of runs to train as one batched computation, with seeds from --seed on. A GPU gains much, a CPU gains
    little. Each run equals the run trained alone, up to rounding. With --out DIR the runs go to DIR/s0, DIR/s1, …"""
    learner: Learner = field(default_factory=Learner)
    """hyperparameters of the learner"""
    env: PluginName | None = None
    """environment of your own: MODULE:FUNCTION, or FOLDER/MODULE:FUNCTION. The function is called with the oversight
    level, and returns a Gymnasium environment with partial oversight"""
    outcomes: tuple[str, ...] = ()
    """for --env: the outcomes and their values to the supervisor, as in lava=-1 goal=1"""

    def config(self) -> dict[str, Any]:
        """Everything that the run depends on, except the seed and the code of --env, as JSON."""
        mine = {key: value for key, value in asdict(self).items() if key not in NOT_IDENTITY}
        return mine if self.env else {key: value for key, value in mine.items() if key not in ("env", "outcomes")}


OWN = Learner(
    networks="auto",
    n_envs=16,
    n_steps=128,
    batch_size=512,
    n_epochs=4,
    learning_rate=1e-3,
    gamma=0.99,
    entropy=(0.1, 0.005),
    replay_steps=40,
    replay_capacity=32_768,
)
"""Defaults of the learner in an environment of the user's own."""


@dataclass(frozen=True)
class StudyOptions:
    """Compare methods over oversight levels and seeds in tables and figures. An interrupted study continues."""

    env: PluginName | None = None
    """environment of your own: MODULE:FUNCTION, or FOLDER/MODULE:FUNCTION. The function is called with an oversight
    level, and returns a Gymnasium environment with partial oversight"""
    outcomes: tuple[str, ...] = ()
    """for --env: the outcomes and their values to the supervisor, as in lava=-1 goal=1"""
    methods: tuple[PluginName, ...] = (
        "routing",
        "routing-predicted",
        "naive",
        "naive-early-stopped",
        "filtering",
        "reward-model",
        "oracle",
    )
    """methods to compare at every oversight level: the methods of train; "routing-predicted": routing with
    --unlabelled predicted --learner.solo 1; "strict": routing with --unlabelled none; "miss-RATE", "flip-RATE":
    routing with this rate of lost or wrong labels; with "-hard" at the end, as in "flip-0.3-hard", the noise grows
    with the length of the episode. MODULE:NAME is a Method of your own"""
    levels: tuple[float, ...] = (0.01, 0.03, 0.1, 0.4)
    """oversight levels: probabilities that a terminal state is overseen"""
    controls: tuple[PluginName, ...] = ()
    """more methods, trained at the --focus level only"""
    focus: float | None = None
    """oversight level of the controls, the learning curves, the bars and the arrows; None: the level nearest
    to 0.1"""
    seeds: int = 3
    """number of runs per method and level, with seeds 0, 1, …"""
    total_steps: int | None = None
    """environment steps per run; None: the number of the preset"""
    reward: Literal["outcome", "environment"] | None = None
    """what an episode without a label pays, as for train: "outcome", +1 for any outcome; "environment", the
    environment's own reward; None: what is usual in the world"""
    parallel_seeds: int = 1
    """number of runs of one method that a process trains as one batched computation; useful on a GPU"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device of the environments, the rollouts and the learner, as for train"""
    out: Path = RUNS / "oversight"
    """directory of the runs, tables and figures"""
