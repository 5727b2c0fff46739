"""The page of the demo: a tab for each subject."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import panel as pn
import panel_material_ui as pmui

from routed_rl.experiments.demo.agents import Agent
from routed_rl.experiments.demo.gridworld import Gridworld
from routed_rl.experiments.demo.study import study_tab
from routed_rl.extras import MissingExtraError

pn.extension("tabulator")


def make_page(agents: Sequence[Agent], directories: Sequence[Path]) -> Any:
    """Return a new page, for one visitor.

    Args:
        agents: the agents of the tab Gridworld.
        directories: of studies. Each tab shows those of its kind.
    """
    tabs = pmui.Tabs(
        ("Gridworld", Gridworld(agents).page()),
        ("Study", study_tab(directories)),
        ("Language", _about_texts(_language, directories)),
        ("Unlearning", _about_texts(_unlearning, directories)),
        sizing_mode="stretch_width",
    )
    return pmui.Page(title="routed_rl demo", main=[pmui.Container(tabs, width_option="xl")])


def _about_texts(tab: Callable[[Sequence[Path]], Any], directories: Sequence[Path]) -> Any:
    """Return a tab about language models, or what to install for it."""
    try:
        return tab(directories)
    except MissingExtraError as error:
        return pn.pane.Markdown(f"This tab needs more packages: {error}")


def _language(directories: Sequence[Path]) -> Any:
    from routed_rl.experiments.demo.language import language_tab  # its packages are an extra

    return language_tab(directories)


def _unlearning(directories: Sequence[Path]) -> Any:
    from routed_rl.experiments.demo.unlearning import unlearning_tab  # its packages are an extra

    return unlearning_tab(directories)
