"""The tab "Gridworld": place the pieces, steer the agent, and see at once what it would do."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import panel as pn
import panel_material_ui as pmui

from routed_rl.experiments.common.agents.figures import COLOURS
from routed_rl.experiments.demo.agents import Agent
from routed_rl.experiments.demo.board import MOVES, OVERSEEN, PLAYER, WALL, Board, Reading, outcome, read
from routed_rl.experiments.demo.widgets import BoardView

GLYPHS = {"diamond": "◆", "ghost": "✖"}
GATE, MIX = "The gate", "A fixed mix"
EXPLAINED = """
The circle is the player, ◆ the Diamond, ✖ the Ghost. Choose a piece, then click a cell. An arrow is as long as its move
is likely. A dashed frame marks an overseen cell. With the keyboard, move between cells by the arrow keys, and place the
piece by Enter.
"""


class Gridworld:
    """The state of the tab: a board, and two agents that act on it.

    Args:
        agents: agents to choose from; the first one with modules is shown first.
    """

    def __init__(self, agents: Sequence[Agent]) -> None:
        self.agents = {agent.name: agent for agent in agents}
        first = next((agent for agent in agents if agent.routed), agents[0])
        others = [agent.name for agent in agents if not agent.routed] or [agents[-1].name]
        names = list(self.agents)
        self.agent = pmui.Select(label="Agent", options=names, value=first.name, sizing_mode="stretch_width")
        self.other = pmui.Select(label="Compare with", options=names, value=others[0], sizing_mode="stretch_width")
        self.tool = pmui.RadioBoxGroup(label="Piece to place", inline=True)
        self.acts = pmui.RadioButtonGroup(
            label="What acts (left)", options=[GATE, MIX], value=MIX if first.routed else GATE
        )
        self.contrast = pmui.FloatSlider(label="Contrast", start=0, end=8, step=0.5, value=0)
        self.temperature = pmui.FloatSlider(label="Temperature", start=0.1, end=2, step=0.1, value=1)
        self.ablated = pmui.CheckBoxGroup(label="Ablated modules", options=[])
        self.play = pmui.Button(label="Play an episode", button_type="primary")
        self.clear = pmui.Button(label="Start again", variant="outlined")
        self.weights = pmui.FlexBox()
        self.said = pn.pane.HTML("", styles={"min-height": "1.5em"})
        self.views = [BoardView(sizing_mode="stretch_width"), BoardView(sizing_mode="stretch_width")]
        self.notes = [pn.pane.HTML(""), pn.pane.HTML("")]
        self.mix: list[pmui.FloatSlider] = []
        self.seed = 0
        self._open()
        for view in self.views:
            view.param.watch(lambda event: self._place(event.obj.cell), "clicked")
        self.agent.param.watch(lambda _: self._open(), "value")
        self.other.param.watch(lambda _: self._show(), "value")
        for widget in (self.acts, self.contrast, self.temperature, self.ablated):
            widget.param.watch(lambda _: self._show(), "value")
        self.play.on_click(lambda _: self._play())
        self.clear.on_click(lambda _: self._open())

    def page(self) -> Any:
        """Return the tab."""
        boards = [
            pn.Column(title, view, note, min_width=260, max_width=420, sizing_mode="stretch_width")
            for title, view, note in zip((self.agent, self.other), self.views, self.notes, strict=True)
        ]
        return pn.Column(
            pn.pane.Markdown(EXPLAINED),
            pmui.FlexBox(self.tool, self.play, self.clear, align_items="center"),
            self.said,
            pmui.FlexBox(
                *boards,
                pn.Column(
                    self.acts,
                    self.weights,
                    self.contrast,
                    self.temperature,
                    self.ablated,
                    min_width=240,
                    max_width=340,
                ),
                gap="16px",
            ),
            sizing_mode="stretch_width",
        )

    def _open(self) -> None:
        """Show the chosen agent in its world, with the pieces where they usually are."""
        agent = self.agents[self.agent.value]
        self.board = Board.usual(agent.world)
        names = [name.capitalize() for name in agent.world.names]
        self.tool.param.update(options=["Player", *names, "Wall", "Overseen"], value="Player")
        modules = agent.policy.module_names if agent.routed else ()
        last = modules[-1] if modules else None
        self.mix = [
            pmui.FloatSlider(
                label=f"Weight of {name.capitalize()}", start=0, end=1, step=0.05, value=float(name == last)
            )
            for name in modules
        ]
        for slider in self.mix:
            slider.param.watch(lambda _: self._show(), "value")
        self.weights.objects = self.mix
        self.ablated.param.update(options=[name.capitalize() for name in modules], value=[])
        self.contrast.value, self.temperature.value = 0, 1
        self._show()

    def _place(self, cell: int) -> None:
        known = {"Player": PLAYER, "Wall": WALL, "Overseen": OVERSEEN}
        try:
            self.board = self.board.place(known.get(self.tool.value, self.tool.value.lower()), cell)
        except ValueError as error:
            self._say(str(error))
        else:
            self._show()

    def _play(self) -> None:
        self.seed += 1
        lines: list[str] = []
        for view, title, reading in zip(self.views, (self.agent, self.other), self.readings, strict=True):
            if reading is None:
                continue
            trail = reading.play(self.seed)
            view.episode = {"number": self.seed, "cells": trail}
            lines.append(f"{title.value}: {outcome(self.board, trail)}")
        if lines:
            self._say(f"Episode {self.seed}. {'. '.join(lines)}.")

    def _say(self, text: str) -> None:
        self.said.object = f'<div role="status" aria-live="polite">{html.escape(text)}</div>'

    def _show(self) -> None:
        """Show what both agents do on the board as it is."""
        left, right = self.agents[self.agent.value], self.agents[self.other.value]
        for widget in (*self.mix, self.contrast, self.temperature):
            widget.disabled = self.acts.value == GATE or not left.routed
        self.acts.disabled = self.ablated.disabled = not left.routed
        self.readings: list[Reading | None] = [None, None]
        problem = ""
        try:
            self.readings[0] = self._steered(left)
        except ValueError as error:
            problem = str(error)
        same = (left.world.observation_shape, left.world.names) == (right.world.observation_shape, right.world.names)
        if same:
            self.readings[1] = read(right.policy, self.board)
        moved = self._moved_weight() if left.routed and not problem else ""
        remarks = (
            problem or moved,
            "" if same else "This agent was trained in a world of another kind. Choose another one.",
        )
        shown = zip(self.views, self.notes, (left, right), self.readings, remarks, strict=True)
        for view, note, agent, reading, remark in shown:
            view.visible = agent is left or same
            view.param.update(
                title=f"Board of {agent.name}",
                columns=self.board.world.width,
                cells=_cells(self.board, reading),
                episode={"number": self.seed, "cells": []},
            )
            said = f"<p role=status>{html.escape(remark)}</p>" if remark else ""
            note.object = said + (_note(reading) if reading is not None else "")
        self._say("")

    def _ablated(self) -> list[str]:
        """Return the names of the ablated modules as the widget shows them."""
        return list(self.ablated.value or ())

    def _steered(self, agent: Agent) -> Reading:
        """Return what an agent does with the steering that the widgets ask for; ValueError if it is impossible."""
        if not agent.routed:
            return read(agent.policy, self.board)
        modules = agent.policy.module_names
        gone = [name.lower() for name in self._ablated()]
        if len(gone) == len(modules):
            raise ValueError("one module must remain: take one off the list of ablated modules")
        if self.acts.value == GATE:
            with agent.policy.steered(ablate=gone):
                return read(agent.policy, self.board)
        if not sum(slider.value for slider in self.mix):
            raise ValueError("no module acts: give a module a weight above 0")
        left = {name: slider.value for name, slider in zip(modules, self.mix, strict=True) if name not in gone}
        if not sum(left.values()):  # all weight was on ablated modules
            left = dict.fromkeys(left, 1.0)
        weights = {name: value / sum(left.values()) for name, value in left.items()}
        avoid = {name: self.contrast.value for name, value in weights.items() if not value and self.contrast.value}
        with agent.policy.steered(weights, ablate=gone, avoid=avoid, temperature=self.temperature.value):
            return read(agent.policy, self.board)

    def _moved_weight(self) -> str:
        """Return a sentence that says where the weight of ablated modules goes; empty if they have none."""
        names, ablated = self.ablated.options, self._ablated()
        if self.acts.value == GATE:
            gone, to = ablated, "the gate's weight goes to"
        else:
            weights = dict(zip(names, (slider.value for slider in self.mix), strict=True))
            gone, to = [name for name in ablated if weights[name]], "the weight goes to"
        rest = [name for name in names if name not in ablated]
        if not gone:
            return ""
        return f"{' and '.join(gone)} {'is' if len(gone) == 1 else 'are'} ablated: {to} {' and '.join(rest)}."


def _cells(board: Board, reading: Reading | None) -> list[dict[str, Any]]:
    """Return what the board's component shows in each cell: the pieces, and the moves if there is a reading."""
    cells = []
    for cell in range(board.world.cells):
        piece, chances = board.piece(cell), [0.0] * 4 if reading is None else reading.probabilities[cell].tolist()
        row, column = divmod(cell, board.world.width)
        words = [f"row {row + 1}, column {column + 1}: {piece or 'empty'}"]
        if cell in board.overseen:
            words.append("overseen")
        if sum(chances):
            best = max(range(4), key=chances.__getitem__)
            words.append(f"most likely move {MOVES[best]}, {chances[best]:.0%}")
        shown = {"piece": piece, "glyph": GLYPHS.get(str(piece), str(piece)[:1].upper()), "moves": chances}
        colour = COLOURS.get(str(piece), "#0072b2")
        cells.append({"label": ", ".join(words), "overseen": cell in board.overseen, "colour": colour, **shown})
    return cells


def _note(reading: Reading) -> str:
    """Return the chances from the player's cell as HTML: how the episode ends, and what each module would do."""
    board = reading.board
    ends = ", ".join(f"{name or 'neither'} {chance:.0%}" for name, chance in reading.ends().items())
    head = "".join(f"<th scope=col>{move}</th>" for move in MOVES)
    rows = [("as steered", "", reading.probabilities[board.player])]
    if len(reading.modules) > 1:
        gate = reading.gate[board.player]
        rows += [
            (f"{name.capitalize()} alone", f"{gate[i]:.0%}", reading.alone[i, board.player])
            for i, name in enumerate(reading.modules)
        ]
    body = "".join(
        f"<tr><th scope=row>{html.escape(name)}</th>"
        + "".join(f"<td>{chance:.0%}</td>" for chance in chances)
        + f"<td>{gate}</td></tr>"
        for name, gate, chances in rows
    )
    return (
        f"<p>An episode from here ends on: {html.escape(ends)}.</p>"
        "<table style='border-spacing: 8px 2px; text-align: right'><caption style='text-align: left'>Moves from the "
        f"player's cell</caption><thead><tr><td></td>{head}<th scope=col>gate</th></tr></thead><tbody>{body}</tbody>"
        "</table>"
    )
