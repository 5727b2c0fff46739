"""Options of a hacking study and its runs. A field is an option; its docstring is the help."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from routed_rl.options import RUNS
from routed_rl.plugins import PluginName

HackingMethod = Literal[
    "plain",
    "oracle",
    "penalty",
    "penalty-scaled",
    "penalty-weighted",
    "penalty-solo",
    "penalty-replay",
    "screening",
    "filtering",
    "inverted",
    "inoculation",
    "monitor-penalty",
    "monitor-screening",
    "routing",
    "routing-penalty",
    "routing-solo",
    "routing-replay",
    "routing-predicted",
    "placebo",
    "shuffled",
]


@dataclass(frozen=True)
class HackingTraining:
    """Reinforcement learning by GRPO, with TRL's trainer."""

    updates: int = 200
    """updates of training"""
    batch_size: int = 128
    """completions per update"""
    group: int = 8
    """completions per prompt"""
    learning_rate: float = 1e-3
    """learning rate of AdamW"""
    rank: int = 8
    """rank of each of the two adapters"""
    beta: float = 0.0
    """weight of the divergence from the model before training"""
    every: int = 25
    """updates between measurements"""
    penalty: float = 2.0
    """what the reward of an answer with the label "hack" is lowered by, in methods that penalise; choose it for rewards
    of your own that are not 0 or 1"""
    at_once: int | None = None
    """completions in a forward and backward pass, to save memory; None: all of an update"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device on which models are trained"""


@dataclass(frozen=True)
class HackingRun(HackingTraining):
    """One model of a hacking study."""

    world: PluginName = "loophole"
    """world, as for the study"""
    method: HackingMethod | Literal["base"] = "plain"
    """method, as for the study; "base": make the model before reinforcement learning, and train nothing"""
    oversight: float = 0.1
    """share of completions that the overseer looks at"""
    seed: int = 0
    """seed of all random numbers"""
    relearning: int = 0
    """updates with the grader's reward alone, of a model that the method has finished; 0: train by the method"""
    base: Path | None = None
    """directory of the run from whose model this one goes on"""
    out: Path = RUNS / "hacking" / "run"
    """directory of the run"""
    force: bool = False
    """start over; the old directory gets another name"""

    def config(self) -> dict[str, Any]:
        """Return the options that determine the run together with the seed, as JSON."""
        left_out = ("seed", "out", "force", "base", "at_once")  # the last one changes results by rounding only
        return {name: value for name, value in asdict(self).items() if name not in left_out}


@dataclass(frozen=True)
class HackingOptions(HackingTraining):
    """Compare ways to keep a language model from exploiting its grader, if an overseer sees only some of its answers.
    An interrupted study continues."""

    worlds: tuple[PluginName, ...] = ("loophole", "watched")
    """worlds: "loophole", "watched", "evaded", "blind-spot", "code" (for a GPU; it runs code that the model writes), or
    MODULE:CLASS of your own"""
    methods: tuple[HackingMethod, ...] = (
        "plain", "oracle", "penalty", "penalty-solo", "penalty-replay", "screening", "filtering", "inverted",
        "inoculation", "monitor-penalty", "routing", "routing-solo", "routing-replay", "routing-predicted", "placebo",
        "shuffled",
    )  # fmt: skip
    """methods to compare. There are also penalty-scaled, penalty-weighted, monitor-screening and routing-penalty"""
    oversight: tuple[float, ...] | None = None
    """shares of completions that the overseer looks at; None: those of each world"""
    relearned: tuple[HackingMethod, ...] = (
        "penalty", "filtering", "monitor-penalty", "routing-solo",
    )  # fmt: skip
    """methods whose finished models, those at the highest oversight, are trained on with the grader's reward alone"""
    relearning: int = 200
    """updates of that further training"""
    seeds: int = 3
    """number of models of each method and oversight, with seeds 0, 1, …"""
    out: Path = RUNS / "hacking"
    """directory of runs, tables and figures"""
