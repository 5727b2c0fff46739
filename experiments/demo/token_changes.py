"""How much the loss of each token of a text changes: as a table, and as coloured text."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import pandas as pd

UP, DOWN = "213, 94, 0", "0, 114, 178"
"""Red, green and blue of a rise (orange) and of a fall (blue), which colour-blind readers can tell apart."""
DEEPEST = 0.55
"""Opacity of the strongest colour, at which dark text and white text can both be read."""
LEAST = 1.0
"""Nats that have the strongest colour, if no change of the text is larger."""
STYLES = f"""
.tokens {{ white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2; font-size: 1.05em; }}
.tokens span {{ border-radius: 3px; padding: 2px 1px; }}
.up {{ border-bottom: 2px solid rgb({UP}); }}
.down {{ border-bottom: 2px dotted rgb({DOWN}); }}
.key {{ display: inline-block; padding: 2px 6px; }}
.key {{ background: rgba({UP}, {DEEPEST}); border-bottom: 2px solid rgb({UP}); }}
.key.falls {{ background: rgba({DOWN}, {DEEPEST}); border-bottom: 2px dotted rgb({DOWN}); }}
"""
"""Style sheet of what this module returns."""
SEEN = 0.05
"""Smallest change, in nats, that is underlined."""


def changes(pieces: Sequence[str], before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """Return a row per token: its text, its loss before and after, and the change, in nats.

    Raises:
        ValueError: if the numbers of pieces and losses differ.
    """
    if not len(pieces) == len(before) == len(after):
        raise ValueError(f"a loss is needed for each piece, got {len(pieces)}, {len(before)} and {len(after)}")
    return pd.DataFrame({"token": list(pieces), "before": before, "after": after, "change": after - before})


def coloured(frame: pd.DataFrame) -> str:
    """Return the text of :func:`changes` as HTML: rises are orange and underlined, falls blue and dotted.

    Screen readers get a list of tokens, each with its change. What users wrote is escaped.
    """
    largest = max(LEAST, float(frame.change.abs().max())) if len(frame) else LEAST
    parts = []
    for piece, change in zip(frame.token, frame.change, strict=True):
        word = piece.lstrip()
        number = f"{change:+z.2f} nats"
        red_green_blue = UP if change > 0 else DOWN
        depth = DEEPEST * min(abs(change) / largest, 1)
        kind = "" if abs(change) < SEEN else "up" if change > 0 else "down"
        parts.append(
            f'{escape(piece[: len(piece) - len(word)])}<span role="listitem" class="{kind}" title="{number}" '
            f'aria-label="{escape(word)}: {number}" style="background: rgba({red_green_blue}, {depth:.3f})">'
            f"{escape(word) or '◌'}</span>"
        )
    return f'<div class="tokens" role="list" aria-label="Tokens with the change of their loss">{"".join(parts)}</div>'


def explained(frame: pd.DataFrame, before: str, after: str) -> str:
    """Return HTML that says what the colours mean, and the mean losses. ``before`` and ``after`` name the models."""
    if frame.empty:
        return "<p>Write at least one word.</p>"
    largest = max(LEAST, float(frame.change.abs().max()))
    return (
        f'<p><span class="key">loss rises</span> <span class="key falls">loss falls</span> by up to {largest:.2f} nats '
        f"(strongest colour). Mean loss: {frame.before.mean():.2f} nats per token ({escape(before)}), "
        f"{frame.after.mean():.2f} ({escape(after)}), change {frame.change.mean():+z.2f}.</p>"
    )


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of :func:`changes` as text, to be shown."""
    shown = frame.rename(
        columns={"before": "loss before (nats)", "after": "loss after (nats)", "change": "change (nats)"}
    )
    for name in shown.columns[1:]:
        sign = "+" if name.startswith("change") else ""
        shown[name] = [f"{value:{sign}z.2f}" for value in shown[name]]
    return shown.assign(token=frame.token.str.strip())
