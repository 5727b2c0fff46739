"""``wmdp``: multiple-choice questions about hazardous knowledge (WMDP, Li et al. 2024), with MMLU as the retain set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from routed_rl.unlearning.benchmarks.benchmark import FORGET, RETAIN, Benchmark, BenchmarkKind, Example
from routed_rl.unlearning.benchmarks.fields import Fields
from routed_rl.unlearning.benchmarks.hub import Published

QUESTIONS, CORPORA, BIO_FORGET, MMLU = "cais/wmdp", "cais/wmdp-corpora", "cais/wmdp-bio-forget-corpus", "cais/mmlu"
SUBJECTS = {"bio": "biology", "cyber": "cybersecurity", "chem": "chemistry"}
LETTERS = "ABCD"


class Wmdp(BenchmarkKind):
    """WMDP: 3,668 questions with four choices. The documents are its corpora, and the retain set is the test of MMLU.

    The forget corpus of biology is not public: its authors give access on the Hub. There is no corpus of chemistry.
    There the forget documents are the questions with their right answers, and the retain documents are those of MMLU's
    validation set.

    A question is written as by lm-eval: with its choices, and the answer is a letter. The scores ``wmdp-bio``,
    ``wmdp-cyber``, ``wmdp-chem`` and ``mmlu`` are those of lm-eval itself.

    Only choices are scored, unless other scores are asked for: writing answers to all questions of MMLU takes long, and
    says nothing more.
    """

    splits = tuple(SUBJECTS)
    scores: ClassVar[Sequence[str]] = ("multiple-choice", "normalised-probability", "retained-multiple-choice")

    def load(self, data: str | None = None, split: str | None = None) -> Benchmark:
        """Return the benchmark; see :meth:`BenchmarkKind.load`."""
        domain = self.known(split)
        questions, corpora, mmlu = (Published(name, data) for name in (QUESTIONS, CORPORA, MMLU))
        forget = tuple(_example(row, SUBJECTS[domain]) for row in questions.read(f"wmdp-{domain}", "test"))
        retain = tuple(map(_of_mmlu, mmlu.read("all", "test")))
        if domain == "chem":
            documents = [example.row() for example in forget]
            kept = [_of_mmlu(row).row() for row in mmlu.read("all", "validation")]
        else:
            name = f"{domain}-forget-corpus"
            if domain == "bio":
                documents = Published(BIO_FORGET, data).texts("default" if data is None else name)
            else:
                documents = corpora.texts(name)
            kept = corpora.texts(f"{domain}-retain-corpus")
        return Benchmark(
            documents, kept, {FORGET: forget, RETAIN: retain}, main="multiple-choice", chance=1 / len(LETTERS)
        )


def _of_mmlu(row: Fields) -> Example:
    return _example(row, row.text("subject").replace("_", " "))


def _example(row: Fields, subject: str) -> Example:
    choices = row.row.get("choices")
    if not isinstance(choices, list) or len(choices) != len(LETTERS):
        raise row.wrong(f"needs a list of {len(LETTERS)} texts in the field 'choices'")
    options = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    right = row.index("answer", len(LETTERS))
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    letters = [f" {LETTERS[right]}", *(f" {letter}" for letter in LETTERS if letter != LETTERS[right])]
    prompt = f"{head}{row.text('question').strip()}\n{options}\nAnswer:"
    return Example(prompt, letters[0], choices=tuple(letters), chat=False)
