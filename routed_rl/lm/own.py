"""From the user's own models and texts to options that name them, saved where a study's processes read them."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from routed_rl.errors import user_input
from routed_rl.lm.documents import as_row
from routed_rl.lm.inputs import model_identity
from routed_rl.lm.models import save_model
from routed_rl.lm.texts import Texts, labelled_documents
from routed_rl.options.conform import conform
from routed_rl.options.text import CorpusOptions
from routed_rl.paths import expanded
from routed_rl.runs import write_bytes
from routed_rl.runs.files import move_in
from routed_rl.runs.studies import refuse_unknown

NAMES = ("model", "tokenizer", "corpus", "forget", "also")
"""Options that name something, and that may be the thing itself."""
LISTS = ("words", "tokens")
"""Options that list words, or name a file with them."""


def named(kind: type[CorpusOptions], usual: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of every option: from ``given``, else from ``usual``, else the default.

    Models and texts that are objects are saved in the folder ``corpora``; their value is the path.

    Raises:
        TypeError: for a name in ``given`` that is not an option.
        UserError: for a model or texts that cannot be saved, or as :func:`~routed_rl.options.conform.conform`.
    """
    values = {**vars(kind()), **usual}
    refuse_unknown(kind, given, values)
    values |= given
    values |= {name: _path(given[name]) for name in NAMES if name in given}
    values |= {name: [_path(one) for one in given[name]] for name in LISTS if isinstance(given.get(name), list | tuple)}
    folder = values["corpora"] = Path(os.path.abspath(expanded(values["corpora"])))
    with user_input():
        if isinstance(values["model"], str):
            if not isinstance(values["tokenizer"], str | None):
                raise ValueError(f"tokenizer must be a name or a folder where model is one, got {values['model']!r}")
        else:
            values["model"] = saved_model(values["model"], values["tokenizer"], folder)
            values["tokenizer"] = None
        for name in ("corpus", "forget", "also"):
            if values[name] is not None and not isinstance(values[name], str):
                values[name] = saved_texts(name, values[name], folder)
    return conform(kind, values)


def _path(value: Any) -> Any:
    """A path as a string; any other value as it is."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def saved_model(model: nn.Module, tokenizer: Any, folder: Path) -> str:
    """Save the user's model and tokenizer in a new folder, named by the hash of its files, and return its path.

    Raises:
        ValueError: if no tokenizer is given.
    """
    if tokenizer is None or isinstance(tokenizer, str):
        raise ValueError(f"give the tokenizer of the model as an object too, got tokenizer={tokenizer!r}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as saved:
        save_model(model, tokenizer, Path(saved) / "model")
        place = folder / f"model-{model_identity(str(Path(saved) / 'model')).removeprefix('sha256:')}"
        move_in(Path(saved) / "model", place)
    return str(place)


def saved_texts(name: str, texts: Texts, folder: Path) -> str:
    """Save the user's texts as a .jsonl file, named by the hash of the texts, and return its path.

    Raises:
        ValueError: as :func:`~routed_rl.lm.text_corpus`.
    """
    documents = labelled_documents(name, texts)
    lines = "".join(json.dumps(as_row(document), ensure_ascii=False) + "\n" for document in documents)
    place = folder / f"texts-{hashlib.sha256(lines.encode()).hexdigest()[:16]}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        write_bytes(place, lines.encode())
    return str(place)
