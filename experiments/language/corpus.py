"""``routed-rl corpus``: look at a corpus before anything is trained on it."""

from __future__ import annotations

from rich.text import Text

from routed_rl.errors import user_input
from routed_rl.experiments.common.display import show_table, terminal
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
    show(found)


def show(found: Preview) -> None:
    """Print a preview. Text of the corpus is never read as markup."""
    rows = [
        [f"{split}, {kind}", *(f"{number:,}" for number in numbers)]
        for split, kind, *numbers in found.counts.itertuples(index=False)
    ]
    show_table("Documents, and their lengths in tokens", ["set", *found.counts.columns[2:]], rows)
    print(f"Texts in both sets: {found.overlap}")
    if found.special:
        special = ", ".join(f"{token!r} {count}" for token, count in found.special.items())
        print(f"Special tokens in texts, which are control tokens in the corpus: {special}")
    if found.matches:
        matches = ", ".join(f"{text!r} {count}" for text, count in list(found.matches.items())[:MOST])
        more = f" and {len(found.matches) - MOST} more" if len(found.matches) > MOST else ""
        print(f"Forget documents by matched text: {matches}{more}")
    print(LEGEND)
    console = terminal()
    for example in found.examples:
        console.print(Text(f"\ndocument {example.number}, {example.kind}:", "italic"))
        console.print(coloured(example))


def coloured(example: Example) -> Text:
    """The tokens of an example, coloured by their masks."""
    text = Text()
    for token, scored, forget in zip(example.tokens, example.scored, example.forget, strict=True):
        text.append(token, ("bold" if scored else "dim") + (" red" if forget else ""))
    return text
