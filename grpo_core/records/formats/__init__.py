"""The formats that other trainers write, by name. The first that finds its fields reads a path."""

from types import ModuleType

from grpo_core.records.formats import (
    ms_swift,
    nemo_rl,
    table,
    trackio,
    trl,
    verifiers,
    verifiers_v0,
    verl,
)
from grpo_core.records.formats.format import Format

_READERS: tuple[tuple[str, str, ModuleType], ...] = (
    ("trl", "TRL, completions/*.parquet", trl),
    ("verl", "verl, rollout_data_dir/*.jsonl", verl),
    ("verifiers", "verifiers and prime-rl, traces.jsonl", verifiers),
    ("verifiers-v0", "verifiers before 0.4, results.jsonl", verifiers_v0),
    ("nemo-rl", "NeMo-RL, train_data_step*.jsonl", nemo_rl),
    ("ms-swift", "ms-swift, completions.jsonl", ms_swift),
    ("trackio", "trackio, a project's SQLite file", trackio),
    # Last: it takes whatever has completions.
    ("table", "a table: JSONL, Parquet or CSV", table),
)
FORMATS: dict[str, Format] = {
    name: Format(name, title, reader.finds, reader.read, reader.files)
    for name, title, reader in _READERS
}

__all__ = ["FORMATS", "Format"]
