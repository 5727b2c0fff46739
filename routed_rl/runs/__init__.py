"""Running things so that they can be killed, resumed and trusted, whatever they are.

- `RunDirectory`: a directory that is the run; a killed run continues to the same bytes.
- `write_checkpoint`, `read_checkpoint`: tensors and JSON, written atomically, read without executing.
- `MetricsCSV`, `read_metrics`: exact rows that can be cut back to a checkpoint.
- `Stage`, `plan`: steps of a pipeline, in directories named by all that they depend on.
- `derive_seed`: independent child seeds by name.
- `run_commands`: a small pool of fresh processes, one thread each.
- `write_json`, `read_json`, `config_hash`: one strict JSON for all of it.

POSIX only: locks are `flock`, pools are process groups.
"""

from routed_rl.runs.checkpoint import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from routed_rl.runs.files import read_json, write_bytes, write_json
from routed_rl.runs.metrics import MetricsCSV, read_metrics
from routed_rl.runs.pool import run_commands
from routed_rl.runs.record import RunError, RunRecord, check_run, config_hash, read_run, versions
from routed_rl.runs.rundir import RunCheckpoint, RunDirectory
from routed_rl.runs.seeds import check_seed, derive_seed
from routed_rl.runs.stages import Stage, finish_stage, plan, with_ancestors

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "MetricsCSV",
    "RunCheckpoint",
    "RunDirectory",
    "RunError",
    "RunRecord",
    "Stage",
    "check_run",
    "check_seed",
    "config_hash",
    "derive_seed",
    "finish_stage",
    "plan",
    "read_checkpoint",
    "read_json",
    "read_metrics",
    "read_run",
    "run_commands",
    "versions",
    "with_ancestors",
    "write_bytes",
    "write_checkpoint",
    "write_json",
]
