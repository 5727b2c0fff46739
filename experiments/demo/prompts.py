"""The section of the language tab that continues a prompt before unlearning, after it, and after an attack."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import panel as pn
from torch import nn

from routed_rl.errors import UserError
from routed_rl.experiments.demo import parts
from routed_rl.experiments.demo.comparisons import Comparison
from routed_rl.experiments.demo.text_models import continued, continued_in, model_of, tokenizer_of, tokens_of

POLL = 0.1
"""Seconds between two looks at how far an attack is."""
SHARE, LONGEST = 0.75, 24
"""Share of a sample document that is the prompt, and most tokens of the prompt."""
CARD = """
:host { border: 1px solid rgba(128, 128, 128, 0.5); border-radius: 6px; padding: 4px 12px; min-width: 240px; }
h3 { margin: 0.4em 0; font-size: 1em; }
"""


def prompt_of(comparison: Comparison) -> str:
    """Return the begin of a sample forget document, or an empty prompt without documents."""
    texts = comparison.documents("forget")
    if not texts:
        return ""
    tokens = tokens_of(model_of(comparison.before), tokenizer_of(comparison.before), texts[0])
    ahead = len(tokens.ids) - len(tokens.pieces)
    return "".join(tokens.pieces[: min(int(SHARE * len(tokens.ids)), LONGEST) - ahead])


def continuation(comparison: Comparison, prompt: str, folder: Path) -> str:
    """Return a prompt and its likeliest continuation by the model in a folder, as HTML."""
    tokens = tokens_of(model_of(folder), tokenizer_of(folder), prompt)
    return _written(comparison, prompt, continued_in(folder, tokens.ids))


def attacked_continuation(comparison: Comparison, prompt: str, model: nn.Module) -> str:
    """Return a prompt and its likeliest continuation by an attacked model, as HTML."""
    tokens = tokens_of(model, tokenizer_of(comparison.after), prompt)
    return _written(comparison, prompt, continued(model, tokens.ids))


def prompt_section(chosen: pn.widgets.Select) -> list[pn.viewable.Viewable]:
    """Return the section. ``chosen`` is the choice of a comparison."""
    return _Prompts(chosen).parts


class _Prompts:
    """The widgets of the section, and the attacked model that is shown."""

    def __init__(self, chosen: pn.widgets.Select) -> None:
        self.chosen = chosen
        self.model: nn.Module | None = None
        self.prompt = pn.widgets.TextInput(
            name="Prompt (changes apply when you leave the field)", sizing_mode=parts.WIDE
        )
        self.steps = pn.widgets.DiscreteSlider(name="Attack step", options=[1], sizing_mode=parts.WIDE)
        self.button = pn.widgets.Button(name="Run the attack")
        self.bar = pn.indicators.Progress(name="Progress of the attack", value=0, sizing_mode=parts.WIDE, visible=False)
        self.about = pn.pane.HTML("", stylesheets=[parts.TABLE_STYLES], sizing_mode=parts.WIDE)
        self.attacked = self._card(pn.pane.HTML("", name="attacked", sizing_mode=parts.WIDE))
        cards = [
            self._card(parts.html(partial(self._continued, of), chosen, self.prompt, name=of))
            for of in ("before", "after")
        ]
        chosen.param.watch(self._renew, "value")
        self.prompt.param.watch(self._show, "value")
        self.steps.param.watch(self._choose, "value")
        self.button.on_click(self._run)
        self._renew()
        self.parts: list[Any] = [
            pn.pane.HTML("<h2>One prompt, before and after</h2>"),
            parts.note("Each model continues the prompt with its likeliest tokens, in bold."),
            self.prompt,
            self.steps,
            self.about,
            self.button,
            self.bar,
            pn.FlexBox(*cards, self.attacked, gap="12px", sizing_mode=parts.WIDE),
        ]

    @staticmethod
    def _card(pane: pn.pane.HTML) -> pn.pane.HTML:
        pane.param.update(stylesheets=[parts.TABLE_STYLES, CARD], styles={"flex": "1 1 240px"})
        return pane

    def _continued(self, which: str, comparison: Comparison, prompt: str) -> str:
        title = comparison.before_name if which == "before" else comparison.after_name
        return _titled(title, continuation(comparison, prompt, getattr(comparison, which)))

    def _renew(self, *events: Any) -> None:
        """Show another comparison."""
        comparison: Comparison = self.chosen.value
        self.model = None
        self._guarded(self._offer, comparison)
        self._choose()

    def _offer(self, comparison: Comparison) -> str:
        steps = list(comparison.attack_steps)
        self.about.object = parts.paragraph(comparison.describe_attack())
        self.steps.param.update(options=steps or [0], value=(steps or [0])[-1], visible=bool(steps))
        self.button.visible = bool(steps) and comparison.is_run_here
        self.prompt.value = prompt_of(comparison)
        return ""

    def _choose(self, *events: Any) -> None:
        """Show the model after another number of attack steps."""
        comparison: Comparison = self.chosen.value
        self.model = None
        if comparison.attack_steps and not comparison.is_run_here:
            self.model = comparison.attacked(self.steps.value)
        self._show()

    def _show(self, *events: Any) -> None:
        comparison: Comparison = self.chosen.value
        title = f"after {self.steps.value} attack steps"
        if self.model is not None:
            text = attacked_continuation(comparison, self.prompt.value, self.model)
        elif comparison.attack_steps:
            text = parts.paragraph(f"Press “{self.button.name}” to see this model.")
        else:
            title, text = "after an attack", parts.paragraph("There is no attacked model.")
        self.attacked.object = _titled(title, text)

    def _guarded(self, act: Callable[..., str], *arguments: Any) -> None:
        try:
            act(*arguments)
        except UserError as error:
            self.about.object = parts.message(str(error))

    async def _run(self, event: Any) -> None:
        """Run the attack in a thread, and show how far it is."""
        comparison, steps, done = self.chosen.value, self.steps.value, 0

        def count() -> None:
            nonlocal done
            done += 1

        self.button.disabled = self.chosen.disabled = self.steps.disabled = True
        self.bar.param.update(value=0, max=steps, visible=True)
        try:
            work = asyncio.get_running_loop().run_in_executor(None, comparison.attacked, steps, count)
            while not work.done():
                self.bar.value = done
                await asyncio.sleep(POLL)
            self.model = await work
            self._show()
        except (UserError, FloatingPointError) as error:
            self.attacked.object = parts.message(str(error))
        finally:
            self.bar.visible = False
            self.button.disabled = self.chosen.disabled = self.steps.disabled = False


def _written(comparison: Comparison, prompt: str, tokens: tuple[int, ...]) -> str:
    text = tokenizer_of(comparison.after).decode(tokens, skip_special_tokens=True)
    return f"<p>{escape(prompt)} <b>{escape(text)}</b></p>"


def _titled(title: str, text: str) -> str:
    return f"<h3>{escape(title)}</h3>{text}"
