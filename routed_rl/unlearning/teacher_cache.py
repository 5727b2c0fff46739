"""A teacher's outputs on batches, computed once: its most likely tokens, in memory-mapped arrays.

``B`` rows, ``T`` tokens a row, ``k`` tokens kept of each position, ``R`` rows in all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import nn

from routed_rl.lm.batches import Batch, in_parts, row_keys
from routed_rl.lm.training import Source
from routed_rl.paths import expanded
from routed_rl.runs import read_json, write_json
from routed_rl.runs.files import StrPath, move_in, temporary_beside
from routed_rl.unlearning.divergence import Target, top_k_target

KEYS, LOG_P, TOKENS, REST, ABOUT = "keys.npy", "log_p.npy", "tokens.npy", "rest.npy", "teacher.json"


class TeacherCache:
    """The ``k`` most likely next tokens at every position of some rows, as written by :func:`cache_teacher`.

    A row is found by its tokens and where they belong, in any batch, step or process.

    Raises:
        ValueError: if the directory holds no cache.

    Attributes:
        vocabulary: the size of the teacher's vocabulary.
    """

    def __init__(self, directory: StrPath) -> None:
        directory = expanded(directory)
        if not (directory / ABOUT).exists():
            raise ValueError(f"{str(directory)!r} holds no cache of a teacher")
        self.vocabulary: int = read_json(directory / ABOUT)["vocabulary"]
        self._log_p, self._tokens, self._rest = (
            np.load(directory / name, mmap_mode="r", allow_pickle=False) for name in (LOG_P, TOKENS, REST)
        )
        keys = np.load(directory / KEYS, allow_pickle=False)
        self._rows = {key.tobytes(): row for row, key in enumerate(keys)}

    def target(self, batch: Batch) -> Target:
        """Return the student's target at the scored targets of a batch.

        Raises:
            ValueError: for rows that are not in the cache.
        """
        keys = row_keys(batch)
        missing = sum(key not in self._rows for key in keys)
        if missing:
            raise ValueError(
                f"{missing} of {len(keys)} rows are not in the cache, which has {len(self._rows)}: cache "
                "the teacher on every step's batch"
            )
        rows = [self._rows[key] for key in keys]
        scored, length = batch.scored, batch.targets.shape[1]
        arrays = (array[rows, :length] for array in (self._log_p, self._tokens, self._rest))
        log_p, tokens, rest = (torch.from_numpy(array).to(scored.device)[scored] for array in arrays)
        return top_k_target(log_p, tokens.long(), rest)


@torch.no_grad()
def cache_teacher(teacher: nn.Module, source: Source, steps: int, k: int, directory: StrPath) -> TeacherCache:
    """Run a teacher on the batches of this many steps, write its ``k`` most likely tokens, and return the cache.

    The cache takes 8 bytes for each of the ``k`` tokens of each position. A cache that is already there is opened as it
    is, without a comparison.

    Raises:
        ValueError: for less than one step, or a ``k`` that is not within the vocabulary.
    """
    directory = expanded(directory)
    if (directory / ABOUT).exists():
        return TeacherCache(directory)
    vocabulary = teacher.get_input_embeddings().weight.shape[0]  # type: ignore[operator]
    if steps < 1 or not 1 <= k <= vocabulary:
        raise ValueError(f"steps must be 1 or more, and k within 1 … {vocabulary}, got {steps} steps and k {k}")
    teacher.eval()
    device = next(teacher.parameters()).device
    shapes = [source.batch(step).targets.shape for step in range(steps)]
    rows, places = sum(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    temporary = temporary_beside(directory)
    temporary.mkdir(parents=True)
    try:
        keys, log_p, tokens, rest = (
            _reserved(temporary / name, dtype, shape)
            for name, dtype, shape in (
                (KEYS, np.uint8, (rows, 16)),
                (LOG_P, np.float32, (rows, places, k)),
                (TOKENS, np.int32, (rows, places, k)),
                (REST, np.float32, (rows, places)),
            )
        )
        row = 0
        for step in range(steps):
            for part in in_parts(source.batch(step)):
                logits = teacher(**part.to(device).inputs).logits[:, :-1]
                log_q = logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
                largest, which = log_q.topk(k)
                chosen, width = slice(row, row + len(part)), largest.shape[1]
                keys[chosen] = np.frombuffer(b"".join(row_keys(part)), np.uint8).reshape(-1, 16)
                log_p[chosen, :width], tokens[chosen, :width] = largest.cpu(), which.cpu()
                rest[chosen, :width] = log_q.scatter_(-1, which, float("-inf")).logsumexp(-1).cpu()
                row += len(part)
        for array in (keys, log_p, tokens, rest):
            array.flush()
        write_json(temporary / ABOUT, {"vocabulary": vocabulary, "k": k})
        move_in(temporary, directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return TeacherCache(directory)


def _reserved(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """Return a new array in a file whose space is reserved: a full disk is an OSError here, and no SIGBUS later."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):  # macOS has no such call
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
