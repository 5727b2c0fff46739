"""The agents that the demo shows: those that the package carries, and those of run directories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from routed_rl.envs import World, make_world
from routed_rl.experiments.common.agents.worlds import VARIANT_OF, load_run, make_env, world_of
from routed_rl.rl import RoutedActorCriticPolicy
from routed_rl.rl.oversight_study.table import read_agent
from routed_rl.runs import RunError

CARRIED = {"routing": "routed agent (carried by the package)", "naive": "naive agent (carried by the package)"}
"""Agents of ``routed-rl train --oversight 0.05``, seed 0, with 2 million environment steps."""
ON_A_BOARD = ("gridworld", *VARIANT_OF.keys() - {"room"}, "tampering")
"""Worlds whose states are boards of cells."""


@dataclass(frozen=True, eq=False)
class Agent:
    """An agent, and the world in which it was trained.

    Attributes:
        name: unique among the agents of a page.
        policy: its networks, unsteered.
        world: its world.
    """

    name: str
    policy: RoutedActorCriticPolicy
    world: World

    @property
    def routed(self) -> bool:
        """Whether it has several modules, and so can be steered."""
        return len(self.policy.module_names) > 1


def carried() -> list[Agent]:
    """Return the agents that the package carries."""
    folder, world = Path(__file__).parent / "agents", make_world()
    return [Agent(name, RoutedActorCriticPolicy.load(folder / method), world) for method, name in CARRIED.items()]


def is_agent(directory: Path) -> bool:
    """Say whether a directory holds the run of an agent."""
    try:
        read_agent(directory)
    except RunError:
        return False
    return True


def open_agents(directories: Sequence[Path]) -> list[Agent]:
    """Return the agents of run directories.

    Raises:
        RunError: for an unfinished run. ValueError: for a run in a world that is no board of cells.
    """
    found = []
    for directory in directories:
        model, config = load_run(directory)
        if config["world"] not in ON_A_BOARD or config.get("env"):
            where = config.get("env") or config["world"]
            raise ValueError(
                f"the run {str(directory)!r} is in {where}, which has no board; the worlds with one are "
                f"{', '.join(sorted(ON_A_BOARD))}"
            )
        found.append(Agent(str(directory), model.policy, world_of(make_env(config, 1))))
    return found
