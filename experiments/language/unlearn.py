"""``routed-rl unlearn``: train one model, remove a topic from it, repair it and attack it."""

from __future__ import annotations

import json
import sys

from routed_rl.errors import user_input
from routed_rl.lm.era_study.pipeline import train_and_ablate
from routed_rl.lm.era_study.report import remarks
from routed_rl.lm.inputs import quiet_libraries
from routed_rl.options.era import Unlearn
from routed_rl.runs.process import check_device, one_thread


def main(command: Unlearn) -> None:
    one_thread()
    quiet_libraries()
    with user_input():
        check_device(command.device)
    run = train_and_ablate(command)
    if run is not None and run.result is not None:
        print(json.dumps(run.result["losses"], indent=2))
        for remark in remarks(run.result["losses"]):
            print(remark, file=sys.stderr)
        print(f"Model and result: {run.path}")
