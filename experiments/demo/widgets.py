"""The board as a component of the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import param
from panel.custom import JSComponent

HERE = Path(__file__).parent


class BoardView(JSComponent):
    """A board whose cells can be clicked, or reached with the arrow keys. ``clicked`` counts up with each click.

    Attributes:
        title: what screen readers call the board.
        columns: number of columns.
        cells: a dict per cell: ``label``, ``piece``, ``glyph``, ``colour``, ``overseen``, and ``moves``, four chances.
        episode: an episode that was played: its ``number``, and the ``cells`` of its trail. The number makes an episode
            with the trail of the last one a change, so that it is played too.
        cell: the cell that was chosen last.
        clicked: number of choices so far.
    """

    title = param.String()
    columns = param.Integer(1)
    cells = param.List()
    episode = param.Dict({"number": 0, "cells": []})
    cell = param.Integer(-1)
    clicked = param.Integer(0)

    _esm = (HERE / "board.js").read_text(encoding="utf-8")
    _stylesheets: ClassVar[list[str]] = [(HERE / "board.css").read_text(encoding="utf-8")]

    def _handle_msg(self, data: Any) -> None:
        self.param.update(cell=int(data["cell"]), clicked=self.clicked + 1)
