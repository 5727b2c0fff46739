"""The section of the language tab that continues a prompt before unlearning, after it, and after an attack."""

from __future__ import annotations

import asyncio
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import panel as pn
from torch import nn

from routed_rl.errors import UserError
from routed_rl.experiments.demo import parts
from routed_rl.experiments.demo.comparisons import Comparison
from routed_rl.experiments.demo.text_models import (
    NEW,
    continued,
    continued_in,
    model_of,
    tokenizer_of,
    tokens_of,
)

POLL = 0.1
"""Seconds between two looks at how far an attack is."""
SHARE, LONGEST = 0.75, 24
"""Share of a sample document that is the prompt, and most tokens of the prompt."""
CARD = """
:host { border: 1px solid rgba(128, 128, 128, 0.5); border-radius: 6px; padding: 4px 12px; min-width: 240px; }
h3 { margin: 0.4em 0; font-size: 1em; }
"""


class Prompt(NamedTuple):
    """The begin of a text, and how many tokens models write after it."""

    text: str
    new: int = NEW


def prompt_of(comparison: Comparison) -> Prompt:
    """Return the begin of a sample forget document, and the number of tokens in its rest; else an empty prompt."""
    texts = comparison.documents("forget")
    if not texts:
        return Prompt("")
    tokens = tokens_of(model_of(comparison.before), tokenizer_of(comparison.before), texts[0])
    length = len(tokens.ids)
    kept = min(int(SHARE * length), LONGEST)
    text = "".join(tokens.pieces[: kept - (length - len(tokens.pieces))])
    return Prompt(text, min(length - kept, NEW))


def continuation(prompt: Prompt, model: Path | nn.Module, tokenizer: Any) -> str:
    """Return a prompt and its likeliest continuation as HTML, by a model or by the model in a folder."""
    tokens = tokens_of(model_of(model) if isinstance(model, Path) else model, tokenizer, prompt.text)
    write = continued_in if isinstance(model, Path) else continued
    text = tokenizer.decode(write(model, tokens.ids, new=prompt.new), skip_special_tokens=True)
    return f"<p>{escape(prompt.text)} <b>{escape(text)}</b></p>"


def prompt_section(chosen: pn.widgets.Select) -> list[pn.viewable.Viewable]:
    """Return the section. ``chosen`` is the choice of a comparison."""
    return _Prompts(chosen).views()


class _Prompts:
    """The widgets of the section, and the attacked model that is shown."""

    def __init__(self, chosen: pn.widgets.Select) -> None:
        self.chosen = chosen
        self.model: nn.Module | None = None
        self.new = NEW
        self.prompt = pn.widgets.TextInput(name=f"Prompt ({parts.APPLIES})", sizing_mode=parts.WIDE)
        self.steps = pn.widgets.DiscreteSlider(name="Attack step", options=[0], sizing_mode=parts.WIDE)
        self.button = pn.widgets.Button(name="Run the attack")
        self.bar = pn.indicators.Progress(name="Progress of the attack", sizing_mode=parts.WIDE, visible=False)
        self.about = parts.note("")
        self.cards = {
            name: pn.pane.HTML("", name=name, stylesheets=[parts.TABLE_STYLES, CARD], styles={"flex": "1 1 240px"})
            for name in ("before", "after", "attacked")
        }
        for widget, act in ((chosen, self._renew), (self.steps, self._choose), (self.prompt, self._show)):
            widget.param.watch(act, "value")
        self.button.on_click(self._run)
        self._renew()

    def views(self) -> list[pn.viewable.Viewable]:
        """Return what the section shows, from top to bottom."""
        return [
            pn.pane.HTML("<h2>One prompt, before and after</h2>"),
            parts.note("Each model continues the prompt with its likeliest tokens, in bold."),
            self.prompt,
            self.steps,
            self.about,
            self.button,
            self.bar,
            pn.FlexBox(*self.cards.values(), gap="12px", sizing_mode=parts.WIDE),
        ]

    def _renew(self, *events: Any) -> None:
        """Show another comparison."""
        comparison: Comparison = self.chosen.value
        try:
            steps = list(comparison.attack_steps)
            text, self.new = prompt_of(comparison)
            self.about.object = parts.paragraph(comparison.describe_attack())
        except UserError as error:
            steps, text = [], ""
            self.about.object = parts.message(str(error))
        self.steps.param.update(options=steps or [0], value=(steps or [0])[-1], visible=bool(steps))
        self.button.visible = bool(steps) and comparison.is_run_here
        self.prompt.value = text
        self._choose()  # also where the new values are the old ones

    def _choose(self, *events: Any) -> None:
        """Show the model after another number of attack steps."""
        self.model = None
        self._show()

    def _show(self, *events: Any) -> None:
        comparison: Comparison = self.chosen.value
        names = {"before": comparison.before_name, "after": comparison.after_name}
        attack = parts.attack_steps(self.steps.value) if self.steps.visible else "an attack"
        names["attacked"] = f"after {attack}"
        for name, card in self.cards.items():
            try:
                text = self._continued(name, comparison)
            except UserError as error:
                text = parts.message(str(error))
            card.object = f"<h3>{escape(names[name])}</h3>{text}"

    def _continued(self, name: str, comparison: Comparison) -> str:
        model = getattr(comparison, name)
        if name == "attacked":
            if not self.steps.visible:
                return parts.paragraph("There is no attacked model.")
            if self.model is None and comparison.is_run_here:
                return parts.paragraph(f"Press “{self.button.name}” to see this model.")
            self.model = model = self.model or comparison.attacked(self.steps.value)
        return continuation(Prompt(self.prompt.value or "", self.new), model, tokenizer_of(comparison.after))

    async def _run(self, event: Any) -> None:
        """Run the attack in a thread, and show how far it is."""
        comparison, steps, done = self.chosen.value, self.steps.value, 0

        def count() -> None:
            nonlocal done
            done += 1

        widgets = (self.button, self.chosen, self.steps)
        for widget in widgets:
            widget.disabled = True
        self.bar.param.update(value=0, max=steps, visible=True)
        try:
            work = asyncio.get_running_loop().run_in_executor(None, comparison.attacked, steps, count)
            while not work.done():
                self.bar.value = done
                await asyncio.sleep(POLL)
            self.model = await work
            self._show()
        except (UserError, FloatingPointError) as error:
            self.cards["attacked"].object = parts.message(str(error))
        finally:
            self.bar.visible = False
            for widget in widgets:
                widget.disabled = False
