"""``routed-rl corpus``: look at a corpus before anything is trained on it."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from routed_rl.errors import user_input
from routed_rl.experiments.language.options import Corpus
from routed_rl.lm.inputs import check_corpus_options, find_forget, open_text, quiet_libraries
from routed_rl.lm.preview import Example, Preview, preview

MOST = 20
"""Matched texts that are shown."""
LEGEND = "Counts in the loss: bold. Does not: dim. Forget tokens: red."


def main(command: Corpus) -> None:
    quiet_libraries()
    check_corpus_options(command)
    with user_input():
        text = open_text(command)
        found = preview(text.corpus, text.tokenizer, find_forget(command), command.examples)
    show(found, Console())


def show(found: Preview, console: Console) -> None:
    """Print a preview. Text of the corpus is never read as markup."""
    table = Table(title="Documents, and their lengths in tokens", title_justify="left")
    table.add_column("set", no_wrap=True)
    for column in found.counts.columns[2:]:
        table.add_column(column, justify="right")
    for split, kind, *numbers in found.counts.itertuples(index=False):
        table.add_row(f"{split}, {kind}", *(f"{number:,}" for number in numbers))
    console.print(table)
    console.print(f"Texts in both sets: {found.overlap}")
    if found.special:
        special = ", ".join(f"{token!r} {count}" for token, count in found.special.items())
        console.print(Text(f"Special tokens in texts, which are control tokens in the corpus: {special}"))
    if found.matches:
        matches = ", ".join(f"{text!r} {count}" for text, count in list(found.matches.items())[:MOST])
        more = f" and {len(found.matches) - MOST} more" if len(found.matches) > MOST else ""
        console.print(Text(f"Forget documents by matched text: {matches}{more}"))
    console.print(LEGEND)
    for example in found.examples:
        console.print(f"\n[i]document {example.number}, {example.kind}:[/]")
        console.print(coloured(example))


def coloured(example: Example) -> Text:
    """The tokens of an example, coloured by their masks."""
    text = Text()
    for token, scored, forget in zip(example.tokens, example.scored, example.forget, strict=True):
        text.append(token, ("bold" if scored else "dim") + (" red" if forget else ""))
    return text
