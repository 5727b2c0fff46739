"""What each of two processes does in test_distillation.py: ``torchrun … -m tests.unlearning.two_processes FOLDER``."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from routed_rl.lm.corpora import open_corpus
from routed_rl.lm.processes import process_group, processes, rank
from routed_rl.runs import read_checkpoint, write_checkpoint
from tests.lm.cases import log_often, make_batches, make_llama, open_run
from tests.unlearning.distillations import distil_again


def main(folder: Path) -> None:
    batches = make_batches(open_corpus(folder / "corpus"))
    for layout in ("replicated", "sharded"):
        teacher = make_llama(tie_word_embeddings=True)
        teacher.load_state_dict(read_checkpoint(folder / "teacher").tensors)
        with open_run(folder / layout) if rank() == 0 else nullcontext() as run:
            distilled, weights = distil_again(teacher, batches, layout == "sharded", run)
        assert distilled.reached
        if rank() == 0:
            write_checkpoint(folder / f"{layout}, weights", weights, {"student": [*distilled.student.items()]})


if __name__ == "__main__":
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, process_group("cpu"):
        log_often(patch)
        assert processes() == 2
        main(Path(sys.argv[1]))
