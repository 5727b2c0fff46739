"""The page of the demo: a tab for each subject."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from routed_rl.experiments.demo.agents import Agent
from routed_rl.experiments.demo.gridworld import Gridworld
from routed_rl.experiments.demo.study import study_tab

pn.extension("tabulator")


def make_page(agents: Sequence[Agent], studies: Sequence[Path]) -> Any:
    """Return a new page, for one visitor.

    Args:
        agents: the agents of the tab Gridworld.
        studies: directories of studies.
    """
    tabs = pmui.Tabs(
        ("Gridworld", Gridworld(agents).page()),
        ("Study", study_tab(studies)),
        sizing_mode="stretch_width",
    )
    return pmui.Page(title="routed_rl demo", main=[pmui.Container(tabs, width_option="xl")])
