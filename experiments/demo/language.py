"""The tab about language models: what unlearning and steering do to single tokens and to continuations."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

import numpy as np
import panel as pn

from routed_rl.experiments.demo import parts
from routed_rl.experiments.demo.comparisons import Comparison, find_comparisons
from routed_rl.experiments.demo.prompts import prompt_section
from routed_rl.experiments.demo.steered_models import SteeredModel, find_steered
from routed_rl.experiments.demo.text_models import (
    Steering,
    Tokens,
    continued_in,
    losses_in,
    model_of,
    tokenizer_of,
    tokens_of,
)
from routed_rl.experiments.demo.token_changes import STYLES, changes, coloured, explained, table
from routed_rl.lm.inputs import quiet_libraries

STUDIES = {
    "routed-rl era --quick": "a few minutes on two cores",
    "routed-rl undo --alphas 0.4 0.6 0.8": "six minutes on two cores",
    "routed-rl steering-scalar": "a minute per model on one core",
}
"""Commands whose studies this tab shows, and how long they take."""


def language_tab(directories: Sequence[Path]) -> pn.viewable.Viewable:
    """Return the tab: losses by token, prompts before and after unlearning, and steering.

    Args:
        directories: of studies of ``routed-rl era``, ``undo`` and ``steering-scalar``. Others are passed over.
    """
    quiet_libraries()
    comparisons, unread = parts.collect(directories, find_comparisons)
    models, broken = parts.collect(directories, find_steered)
    tab = pn.Column(*unread, *broken, sizing_mode=parts.WIDE)
    if comparisons:
        tab.extend(_unlearning(comparisons))
    if models:
        tab.extend(_steering(models))
    if not comparisons and not models:
        tab.append(parts.missing("None of the directories has a language model that this tab can show.", STUDIES))
    return tab


def _unlearning(comparisons: Sequence[Comparison]) -> list[pn.viewable.Viewable]:
    """Return the sections about models before and after unlearning."""
    chosen = parts.select("Study and model", comparisons)
    text = pn.widgets.TextAreaInput(name=f"Text ({parts.APPLIES})", rows=4, sizing_mode=parts.WIDE)
    samples = parts.sample_choice(text, comparisons[0])
    chosen.param.watch(lambda event: parts.offer(samples, event.new), "value")
    numbers = parts.switch("Show the losses as a table")
    return [
        pn.pane.HTML("<h2>Which tokens are unlearned?</h2>"),
        parts.note(
            "Each token is coloured by how much its loss changes from the model before unlearning to the model after "
            "it. A study of routed-rl era does not keep the routed model with its new units. So its models are "
            "compared with the base model of the same seed, which was trained on everything."
        ),
        chosen,
        samples,
        text,
        numbers,
        parts.html(unlearned_text, chosen, text, numbers, styles=STYLES, name="changes"),
        *prompt_section(chosen),
        parts.html(moments_table, chosen, name="moments"),
    ]


def _steering(models: Sequence[SteeredModel]) -> list[pn.viewable.Viewable]:
    """Return the section about steering scalars."""
    chosen = parts.select("Steered model", models)
    strength = pn.widgets.FloatSlider(name="Number added to the dimension", sizing_mode=parts.WIDE)
    start = pn.widgets.TextInput(name=f"Begin of the text ({parts.APPLIES})", value="", sizing_mode=parts.WIDE)
    text = pn.widgets.TextAreaInput(name=f"Text to measure ({parts.APPLIES})", rows=4, sizing_mode=parts.WIDE)
    samples = parts.sample_choice(text, models[0])
    numbers = parts.switch("Show the losses with steering as a table")

    def renew(*events: object) -> None:
        model: SteeredModel = chosen.value
        end = model.strongest
        strength.param.update(start=-end, end=end, step=end / 30, value=model.usual)
        parts.offer(samples, model)

    renew()
    chosen.param.watch(renew, "value")
    return [
        pn.pane.HTML("<h2>Steer with a scalar</h2>"),
        parts.note(
            "During training, one word taught only one dimension of the residual stream. Adding a number to this "
            "dimension makes the model write about the word. The random numbers of the text are always the same."
        ),
        chosen,
        strength,
        start,
        parts.html(steered_text, chosen, strength, start, name="steered text"),
        parts.note("Below, tokens are coloured by how much the added number changes their loss."),
        samples,
        text,
        numbers,
        parts.html(steered_changes, chosen, strength, text, numbers, styles=STYLES, name="steered changes"),
    ]


def unlearned_text(comparison: Comparison, text: str, numbers: Sequence[str]) -> str:
    """Return a text as HTML, coloured by what unlearning changes, perhaps with a table of the losses."""
    tokens = tokens_of(model_of(comparison.before), tokenizer_of(comparison.before), text)
    before, after = (losses_in(folder, tokens.ids) for folder in (comparison.before, comparison.after))
    return _changed(tokens, before, after, comparison.before_name, comparison.after_name, numbers)


def moments_table(comparison: Comparison) -> str:
    """Return what the study measured while it made the model, as HTML; empty where it kept nothing of this."""
    moments = comparison.moments()
    if moments.empty:
        return ""
    return (
        "<h3>What the study measured</h3>"
        + parts.paragraph(
            "Losses are in nats per token, on the test documents. The routed model with its new units is “after "
            "training”. The samples begin like a test document of the forget set."
        )
        + parts.tabular(moments, "What the study measured", words=True)
    )


def steered_changes(model: SteeredModel, strength: float, text: str, numbers: Sequence[str]) -> str:
    """Return a text as HTML, coloured by what steering changes, perhaps with a table of the losses."""
    tokens = tokens_of(model_of(model.folder), tokenizer_of(model.folder), text)
    before, after = (losses_in(model.folder, tokens.ids, steering) for steering in (None, model.steering(strength)))
    return _changed(tokens, before, after, "not steered", f"{strength:+g} added", numbers)


def steered_text(model: SteeredModel, strength: float, start: str) -> str:
    """Return the text that a steered model writes after a begin, as HTML."""
    tokenizer = tokenizer_of(model.folder)
    tokens = tokens_of(model_of(model.folder), tokenizer, start)
    steering: Steering | None = model.steering(strength) if strength else None
    begin = tokens.ids or (tokenizer.eos_token_id,)  # of a tokenizer without a token for the begin of a document
    written = tokenizer.decode(continued_in(model.folder, begin, model.seed, steering), skip_special_tokens=True)
    return f"<p>{escape(start)} <b>{escape(written)}</b></p>{_remarks(tokens)}"


def _changed(
    tokens: Tokens, before: np.ndarray, after: np.ndarray, before_name: str, after_name: str, numbers: Sequence[str]
) -> str:
    frame = changes(tokens.pieces, before, after)
    shown = coloured(frame) + explained(frame, before_name, after_name) + _remarks(tokens)
    return shown + (parts.tabular(table(frame), "Losses by token") if numbers else "")


def _remarks(tokens: Tokens) -> str:
    """Return paragraphs about what the model cannot read of a text."""
    found = []
    if tokens.unknown:
        found.append(f"The tokenizer does not know these words: {', '.join(tokens.unknown)}.")
    if tokens.cut:
        found.append(f"Only the first {len(tokens.pieces)} tokens are read.")
    return "".join(map(parts.paragraph, found))
