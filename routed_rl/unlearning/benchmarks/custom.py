"""``custom``: the user's own questions and texts, from JSONL files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from routed_rl.errors import UserError, user_input
from routed_rl.lm.documents import from_row
from routed_rl.lm.reading import LINES, rows
from routed_rl.lm.training import Training
from routed_rl.paths import expanded
from routed_rl.unlearning.benchmarks.benchmark import (
    FORGET,
    RETAIN,
    TEXTS,
    Benchmark,
    BenchmarkKind,
    Example,
    Recipe,
    Row,
)
from routed_rl.unlearning.benchmarks.fields import Fields
from routed_rl.wording import did_you_mean, written

EXAMPLES = f"examples{LINES}"
FORMS = (("question", "answer"), ("prompt", "completion"), ("text",))
"""The fields of a row, in one of three forms."""
LISTS = ("paraphrases", "perturbed", "choices")
KNOWN = ("set", *(name for form in FORMS for name in form), *LISTS, "key", "group")


class Custom(BenchmarkKind):
    """The user's own examples.

    ``data`` is a JSONL file with examples, or a folder with ``examples.jsonl``. The folder may also have the training
    documents, ``forget.jsonl`` and ``retain.jsonl``; otherwise these are the examples of the two sets.

    If each forget question has choices, the main score is ``multiple-choice``. Otherwise, if one has a key, it is
    ``knowledge``. Without keys, ``knowledge`` would ask for whole answers word by word, so it is
    ``extraction-strength``.
    """

    recipe: ClassVar[Recipe] = Recipe("small", 4096, Training(steps=600))

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        if split is not None:
            raise UserError(f"{written('--split', split)}: a benchmark of your own has no splits; leave it out")
        if data is None:
            raise UserError(f"--data: name a {LINES} file, or a folder with {EXAMPLES}")
        place = expanded(data)
        with user_input():
            sets = _sets(_file(data, place))
            documents = {kind: _documents(place, kind, sets) for kind in (FORGET, RETAIN)}
            asked = sets.get(FORGET, ())
            counts = [len(example.choices) for example in asked]
            chosen = bool(counts) and all(counts)
            main = "knowledge" if any(example.key for example in asked) else "extraction-strength"
            return Benchmark(
                documents[FORGET],
                documents[RETAIN],
                sets,
                main="multiple-choice" if chosen else main,
                chance=float(np.mean([1 / count for count in counts])) if chosen else 0.0,
            )


def _file(data: str, place: Path) -> Path:
    """Return the file with the examples."""
    file = place / EXAMPLES if place.is_dir() else place
    if not file.is_file():
        there = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
        has = f"; the folder has {', '.join(there)}" if there else ""
        raise UserError(f"{written('--data', data)}: there is no file {str(file)!r}{has}"[:400])
    if file.suffix.lower() != LINES:
        raise UserError(f"{written('--data', data)} must be a {LINES} file, or a folder with {EXAMPLES}")
    return file


def _sets(file: Path) -> dict[str, tuple[Example, ...]]:
    """Return the examples of a file by set."""
    found: dict[str, list[Example]] = {}
    for where, row in rows(file):
        fields = Fields(where, row)
        example = _example(fields)
        name = fields.text("set").removesuffix(TEXTS)
        found.setdefault(name if example.chat else f"{name}{TEXTS}", []).append(example)
    if not found:
        raise UserError(f"{str(file)!r} has no examples")
    return {name: tuple(examples) for name, examples in found.items()}


def _example(fields: Fields) -> Example:
    row = fields.row
    unknown = [name for name in row if name not in KNOWN]
    if unknown:
        near = did_you_mean(unknown[0], KNOWN)
        raise fields.wrong(f"has the unknown field {unknown[0]!r}{near or ', known are ' + ', '.join(KNOWN)}")
    forms = [form for form in FORMS if any(name in row for name in form)]
    if len(forms) != 1:
        raise fields.wrong("needs 'question' and 'answer', or 'prompt' and 'completion', or 'text'")
    *before, last = forms[0]
    prompt = fields.text(before[0]) if before else ""
    answer = fields.text(last)
    paraphrases, perturbed, choices = (fields.texts(name) for name in LISTS)
    key = fields.text("key", "")
    if answer in perturbed:
        raise fields.wrong("has its right answer among the 'perturbed' ones")
    if choices and (choices[0] != answer or len(choices) == 1):
        raise fields.wrong("needs at least two 'choices', the right answer first")
    if key.casefold() not in answer.casefold():
        raise fields.wrong(f"has the key {key!r}, which is not in its answer {answer!r}")
    group = fields.text("group", "")
    return Example(prompt, answer, paraphrases, perturbed, choices, key, chat=last == "answer", group=group)


def _documents(place: Path, kind: str, sets: dict[str, tuple[Example, ...]]) -> Sequence[Row]:
    """Return the training documents of a set: those of its own file, or its examples."""
    file = place / f"{kind}{LINES}"
    if not file.is_file():
        return [example.row() for name in (kind, f"{kind}{TEXTS}") for example in sets.get(name, ())]
    found = []
    for where, row in rows(file):
        if not from_row(row, where=where).text.strip():
            raise UserError(f"{where}: the document has no text")
        found.append(row)
    return found
