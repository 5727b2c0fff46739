"""Make the corpus, tokenizer and model that options name, and save the user's own objects so that options name them."""

from __future__ import annotations

import hashlib
import os
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from routed_rl.errors import at_least
from routed_rl.lm.arithmetic import arithmetic_tokenizer, generate_arithmetic
from routed_rl.lm.corpora import Corpus, build_corpus
from routed_rl.lm.documents import PACKAGED_TEXT, Document, read_documents
from routed_rl.lm.finders import (
    LISTS,
    Finder,
    find_pattern,
    find_topic,
    find_words,
    list_file,
    listed,
    single_tokens,
)
from routed_rl.lm.folders import adapter_base, check_folder, outline
from routed_rl.lm.languages import FORGOTTEN, generate_languages, language_tokenizer
from routed_rl.lm.models import (
    PACKAGED_MODELS,
    PRESETS,
    build_model,
    load_model,
    load_tokenizer,
    save_tokenizer,
)
from routed_rl.lm.reading import visible_files
from routed_rl.lm.stories import FORGET, STORY_WORDS, TOPICS, generate_stories, stories_tokenizer
from routed_rl.lm.texts import Texts
from routed_rl.lm.tokenizers import character_tokenizer, tokenizer_digest, train_tokenizer
from routed_rl.lm.word_problems import generate_word_problems
from routed_rl.options.text import CorpusOptions
from routed_rl.runs import config_hash, derive_seed
from routed_rl.runs.files import move_in, temporary_beside
from routed_rl.wording import written

LOADED = (".json", ".safetensors", ".jinja", ".model", ".txt", ".tiktoken", ".vocab", ".codes")
"""Endings of the files of a folder that models, tokenizers and chat templates are loaded from."""
TEXT_SEED = 0
"""Seed of generated texts, which are the same in every study. Other seeds are those of models and labels."""


@dataclass(frozen=True)
class Generated:
    """A generated corpus.

    Attributes:
        documents: generates so many documents; None: the default number.
        topic: the topic of the forget set.
        tokenizer: makes the corpus's tokenizer.
    """

    documents: Callable[[int | None], Iterator[Document]]
    topic: str
    tokenizer: Callable[[], Any]


STORIES = "stories"
GENERATED = {
    STORIES: Generated(lambda n: generate_stories(n or 15_000, TEXT_SEED), FORGET, stories_tokenizer),
    "arithmetic": Generated(lambda n: islice(generate_arithmetic(), n), "multiplication", arithmetic_tokenizer),
    "word-problems": Generated(
        lambda n: generate_word_problems(n or 20_000, TEXT_SEED),
        "multiplication",
        partial(character_tokenizer, f" {string.printable.strip()}"),
    ),
    "languages": Generated(
        lambda n: generate_languages(n or 20_000, TEXT_SEED), FORGOTTEN, partial(language_tokenizer, shared=False)
    ),
    "languages-shared": Generated(
        lambda n: generate_languages(n or 20_000, TEXT_SEED, True), FORGOTTEN, partial(language_tokenizer, shared=True)
    ),
}


OWN_TEXTS = (*GENERATED, *PACKAGED_TEXT)
OWN_MODELS = (*PRESETS, *PACKAGED_MODELS)
"""Names that always mean these texts and models, even if a folder has the same name."""
Source = str | Texts
"""A text: its name, as in the options, or its documents."""


@dataclass(frozen=True)
class Text:
    """A tokenised corpus, its tokenizer, and the hash of its sources and settings."""

    corpus: Corpus
    tokenizer: Any
    digest: str


def quiet_libraries() -> None:
    """Silence the progress bars and warnings of libraries, in a process with displays of its own."""
    import huggingface_hub
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    huggingface_hub.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def check_corpus_options(options: CorpusOptions) -> None:
    """Raise UserError for a number that cannot be used, and OSError for a folder whose model cannot be loaded."""
    if options.model not in OWN_MODELS:
        check_folder(options.model)
    names = (
        "documents",
        "also_documents",
        "max_characters",
        "max_tokens",
        "vocabulary",
        "test_documents",
        "accumulate",
    )
    at_least(1, **{name: count for name in names if (count := getattr(options, name)) is not None})
    at_least(2, length=options.length)


def open_text(options: CorpusOptions) -> Text:
    """Return the corpus of the options. It is tokenised on first use and then read from disk.

    Raises:
        ValueError: for options that exclude each other, or as the corpus, the finders and the tokenizers do.
        OSError: if files or the hub cannot be read.
    """
    finder, what = _finder(options)
    tokenizer = _tokenizer(options)
    tokens = single_tokens(tokenizer, listed("tokens", options.tokens)) if options.tokens else []
    about: dict[str, Any] = {"documents": options.documents, "forget": what}
    of = {name: _identity(source) for name in ("corpus", "also", "forget") if (source := getattr(options, name))}
    about |= dict(zip(("source", "content"), of["corpus"], strict=True))
    if options.text_field != CorpusOptions.text_field:
        about["text_field"] = options.text_field
    if options.also_documents is not None and options.also is None:
        raise ValueError(f"{written('--also-documents', options.also_documents)} needs --also, which is not given")
    if options.also is not None:
        if options.words or options.pattern is not None or options.tokens:
            raise ValueError(
                f"{written('--also', options.also)} is part of the retain set, so --words, --pattern and --tokens do "
                "not apply: define the forget set by --forget or a generated --corpus"
            )
        if of["also"] == of.get("forget"):
            raise ValueError(
                f"{written('--also', options.also)} and {written('--forget', options.forget)} are the same text: name "
                "different texts"
            )
        about |= dict(zip(("also_source", "also_content"), of["also"], strict=True))
        about["also_documents"] = options.also_documents
    if options.forget is not None:
        about |= dict(zip(("forget_source", "forget_content"), of["forget"], strict=True))
        if of["forget"] == of["corpus"]:
            raise ValueError(
                f"{written('--corpus', options.corpus)} and {written('--forget', options.forget)} are the same text: "
                "the retain set is empty"
            )
    how: dict[str, Any] = {
        "per": options.per,
        "forget_tokens": tokens,
        "validation": options.validation,
        "max_characters": options.max_characters,
        "max_tokens": options.max_tokens,
        "score": options.score,
        "allow_overlap": options.allow_overlap,
    }
    digest = config_hash({**about, **how, "tokenizer": tokenizer_digest(tokenizer)})
    name = Path(options.corpus).stem.replace("/", "-")
    corpus = build_corpus(
        options.corpora / f"{name}-{digest}",
        read_corpus(options),
        tokenizer,
        finder,
        **how,
        about=about,
    )
    return Text(corpus, tokenizer, digest)


def find_forget(options: CorpusOptions) -> Finder | None:
    """Return what finds the forget set of the options in a document. None: the forget set is given by its tokens."""
    return _finder(options)[0]


def whole_paths(options: CorpusOptions) -> dict[str, Any]:
    """Return the options that name files or folders, as absolute paths, which processes elsewhere understand."""
    paths: dict[str, Any] = {"corpora": Path(os.path.abspath(options.corpora))}
    for names, own in ((("model", "tokenizer"), OWN_MODELS), (("corpus", "forget", "also"), OWN_TEXTS)):
        for name in names:
            source = getattr(options, name)
            if source not in (None, *own) and Path(source).exists():
                paths[name] = os.path.abspath(source)
    for name in LISTS:
        if (file := list_file(name, getattr(options, name))) is not None:
            paths[name] = (os.path.abspath(file),)
    return paths


def make_model(
    options: CorpusOptions, tokenizer: Any, seed: int, dtype: torch.dtype | None = torch.float32
) -> nn.Module:
    """Return a new model of a preset, or a pretrained model.

    Args:
        dtype: of a pretrained model's weights. None: as they were saved.

    Raises:
        ValueError, OSError: if it cannot be made or read, or does not fit the tokenizer and the length of rows.
    """
    if options.model in PRESETS:
        model = build_model(options.model, tokenizer, derive_seed(seed, "model"))
    else:
        model = load_model(options.model, dtype)
    check_fits(options, tokenizer, model, options.model)
    return model


def check_model(options: CorpusOptions, tokenizer: Any) -> None:
    """Raise ValueError or OSError if the model of the options does not fit. Its weights are neither made nor read."""
    if options.model in PACKAGED_MODELS:
        return
    with torch.device("meta"):
        model = build_model(options.model, tokenizer, 0) if options.model in PRESETS else outline(options.model)
    check_fits(options, tokenizer, model, options.model)


def check_fits(options: CorpusOptions, tokenizer: Any, model: nn.Module, name: str) -> None:
    """Raise ValueError if a model has too few positions for the rows, or too few tokens for the tokenizer."""
    limit = getattr(model.config, "max_position_embeddings", options.length)  # type: ignore[union-attr]
    if options.length > limit:
        raise ValueError(
            f"{written('--length', options.length)} is more than the {limit} positions of the model {name!r}: pass "
            f"{written('--length', limit)}"
        )
    known = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    unused = {*tokenizer.all_special_ids} - {
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
    }  # texts have these two only
    needed = max(token for token in tokenizer.get_vocab().values() if token not in unused) + 1
    if needed > known:
        raise ValueError(f"the tokenizer has {needed} tokens, more than the {known} of the model {name!r}")


def files_identity(options: CorpusOptions) -> dict[str, Any]:
    """Return the options that name files or folders, with hashes of their content, for a configuration."""
    found: dict[str, Any] = {"model": model_identity(options.model)}
    if options.tokenizer is not None:
        found["tokenizer"] = model_identity(options.tokenizer)
    for name in ("corpus", "forget", "also"):
        source = getattr(options, name)
        if source not in (None, *PACKAGED_TEXT) and (content := text_identity(source)) is not None:
            found[name] = f"sha256:{content[:16]}"
    for name, (known, _) in LISTS.items():
        given = getattr(options, name)
        if len(given) == 1 and given[0] not in known:
            found[name] = list(listed(name, given))
    return found


def model_identity(name: str) -> str:
    """Return what identifies a model in a configuration: its name, or the hash of the files that are loaded from its
    folder: weights, configurations, vocabularies, chat templates.

    Of an adapter, also the files of its base model count.
    """
    folder = Path(name)
    if name in PRESETS or not folder.is_dir():
        return name
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in LOADED:
            digest.update(file.name.encode())
            with file.open("rb") as opened:
                while part := opened.read(1 << 20):
                    digest.update(part)
    base = adapter_base(name)
    if base is not None:
        digest.update(model_identity(base).encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def read_corpus(options: CorpusOptions) -> Iterator[Document]:
    """Yield the documents of the options' corpus, in its order."""
    if options.corpus in GENERATED:
        documents = GENERATED[options.corpus].documents(options.documents)
    else:
        documents = read_documents(options.corpus, options.documents, options.text_field)
    if options.also is not None:
        also = read_documents(options.also, options.also_documents or options.documents, options.text_field)
        documents = chain(documents, (replace(document, topic=None) for document in also))
    if options.forget is None:
        return documents
    return chain((replace(document, topic=None) for document in documents), _to_forget(options))


def _to_forget(options: CorpusOptions) -> Iterator[Document]:
    assert options.forget is not None
    none = True
    for document in read_documents(options.forget, options.documents, options.text_field):
        none = False
        yield replace(document, topic=FORGOTTEN)
    if none:
        raise ValueError(f"{written('--forget', options.forget)} has no documents")


def _identity(source: str) -> tuple[str | None, str | None]:
    """The name of a source, or None for files; and the version or hash of its text."""
    is_file = source not in OWN_TEXTS and Path(source).exists()
    return None if is_file else source, text_identity(source)


def _finder(options: CorpusOptions) -> tuple[Finder | None, str | None]:
    """The finder of the topic, and a description of the topic."""
    given = [name for name in ("words", "pattern", "tokens", "forget") if getattr(options, name)]
    if len(given) > 1:
        raise ValueError(f"--{given[0]} and --{given[1]} both define the forget set: give one of them")
    if options.words:
        words = listed("words", options.words)
        if options.corpus == "stories" and not {word.lower() for word in words} & STORY_WORDS:
            topics = "; ".join(f"{' '.join(own[:3])} … ({topic})" for topic, own in TOPICS.items())
            raise ValueError(f"{written('--words', tuple(words))}: generated stories have other words: {topics}")
        phrases = any(len(word.split()) > 1 for word in words)  # so that a phrase is not taken for its words
        return find_words(words), f"words {sorted(words) if phrases else ' '.join(sorted(words))}"
    if options.pattern is not None:
        return find_pattern(options.pattern), f"pattern {options.pattern}"
    if options.tokens:
        return None, None
    if options.forget is None and options.corpus not in GENERATED:
        raise ValueError("the forget set is not defined: give --words, --pattern, --tokens or --forget")
    topic = FORGOTTEN if options.forget is not None else GENERATED[options.corpus].topic
    return find_topic(topic), f"topic {topic}"


def _tokenizer(options: CorpusOptions) -> Any:
    if options.tokenizer is not None:
        return load_tokenizer(options.tokenizer)
    if options.model not in PRESETS:
        return load_tokenizer(options.model)
    if options.corpus in GENERATED:
        return GENERATED[options.corpus].tokenizer()
    about = [options.corpus, text_identity(options.corpus), options.documents, options.text_field, options.vocabulary]
    if options.forget is not None:
        about += [options.forget, text_identity(options.forget)]
    if options.also is not None:
        about += ["also", options.also, text_identity(options.also), options.also_documents]
    folder = options.corpora / f"tokenizer-{config_hash({'of': about})}"
    if not folder.is_dir():
        temporary = temporary_beside(folder)
        save_tokenizer(train_tokenizer(read_corpus(options), options.vocabulary), temporary)
        move_in(temporary, folder)
    return load_tokenizer(str(folder))


def text_identity(source: str) -> str | None:
    """Return what changes when the text changes: a package's version, or the hash of files; None: nothing is known."""
    path = Path(source)
    if source in GENERATED:
        return None
    if source in PACKAGED_TEXT:
        try:
            return metadata.version(PACKAGED_TEXT[source][0])
        except metadata.PackageNotFoundError:
            return None
    if not path.exists():
        return None
    # Python writes a folder __pycache__ beside modules that it imports.
    files = [path] if path.is_file() else [file for file in visible_files(path)[0] if "__pycache__" not in file.parts]
    if not files:
        return None
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()
