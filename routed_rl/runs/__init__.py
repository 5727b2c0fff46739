"""Run directories, checkpoints, metrics and process pools, for runs that can be killed and resumed exactly.

- `RunDirectory`: a directory with all files of one run. A killed run continues, and ends with the same bytes.
- `write_checkpoint`, `read_checkpoint`: tensors and JSON, written atomically, read without executing code.
- `MetricsCSV`, `read_metrics`: exact rows; a resumed run cuts them back to its checkpoint.
- `Stage`, `plan`: steps of a pipeline. A stage's directory name is a hash of everything that the stage depends on.
- `derive_seed`: independent child seeds by name.
- `run_commands`: a small pool of new processes, one thread each.
- `styled`, `label_ends`: the style of all figures of this package, for your own figures.
- `write_json`, `read_json`, `config_hash`: strict JSON with fixed bytes.

POSIX only: locks use `flock`, pools use process groups.
"""

from routed_rl.runs.checkpoint import Checkpoint, CheckpointError, read_checkpoint, write_checkpoint
from routed_rl.runs.files import read_json, write_bytes, write_json
from routed_rl.runs.metrics import MetricsCSV, read_metrics
from routed_rl.runs.pool import run_commands
from routed_rl.runs.record import RunError, RunRecord, check_run, config_hash, read_run, versions
from routed_rl.runs.rundir import RunCheckpoint, RunDirectory
from routed_rl.runs.seeds import check_seed, derive_seed
from routed_rl.runs.stages import Stage, finish_stage, plan, with_ancestors
from routed_rl.runs.style import label_ends, styled

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
    "label_ends",
    "plan",
    "read_checkpoint",
    "read_json",
    "read_metrics",
    "read_run",
    "run_commands",
    "styled",
    "versions",
    "with_ancestors",
    "write_bytes",
    "write_checkpoint",
    "write_json",
]
