"""A small study of UNDO, whose stages are done in this process, or by several processes together."""

from dataclasses import fields
from pathlib import Path

import pytest

from routed_rl.lm import models
from routed_rl.lm.processes import processes, rank
from routed_rl.options.undo import Distil, Pretrain, Relearn, UndoOptions
from routed_rl.unlearning import UndoStudy
from routed_rl.unlearning.undo_study.stages import Worker
from routed_rl.unlearning.undo_study.study import is_shared


def do_study(out: Path) -> UndoStudy:
    """Do all stages that are not done. Several processes do those that they may do together, and leave the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.PRESETS, "gemma2-tiny", models._gemma2(width=16, layers=2, heads=4, head_width=4))
        study = UndoStudy(
            task="languages",
            documents=200,
            filtered=None,
            pretrain=Pretrain(steps=6, warmup=2),
            distil=Distil(steps=6, warmup=2, every=2, documents=4),
            relearn=Relearn(learning_rates=(1e-2,), steps=2, measured=(1, 2), batch_size=4, rank=2),
            alphas=(0.5,),
            settings=("maxent.steps=6",),
            batch_size=8,
            suppress_rows=2,
            accumulate=2,
            test_documents=4,
            allow_weak_teacher=True,
            processes=processes(),
            corpora=out.with_name(f"corpora of {rank()}"),
            out=out,
        )
        options = UndoOptions(**{field.name: getattr(study, field.name) for field in fields(UndoOptions)})
        worker = Worker(options, study.text, study.root)
        for run in study._prepare(True):
            if processes() == 1 or is_shared(run.stage):
                worker.do(run.stage)
        return study
