"""The record of every run.

One SQLite file, one writing connection, many reading ones. The only place with SQL.
"""

from grpo_core.store.export import (
    export_config_json,
    export_metrics_csv,
    export_rollouts_jsonl,
    export_rollouts_parquet,
)
from grpo_core.store.recorder import Recorder
from grpo_core.store.rollouts import Page, Wanted
from grpo_core.store.rows import (
    CheckpointRow,
    Cursor,
    GroupPage,
    GroupRow,
    GroupSummary,
    PromptVisits,
    RolloutPage,
    RolloutRow,
    RunRow,
    ScoredRow,
    Source,
    TokenRow,
    VerdictCounts,
    WalkableGroup,
)
from grpo_core.store.store import Store

__all__ = [
    "CheckpointRow",
    "Cursor",
    "GroupPage",
    "GroupRow",
    "GroupSummary",
    "Page",
    "PromptVisits",
    "Recorder",
    "RolloutPage",
    "RolloutRow",
    "RunRow",
    "ScoredRow",
    "Source",
    "Store",
    "TokenRow",
    "VerdictCounts",
    "WalkableGroup",
    "Wanted",
    "export_config_json",
    "export_metrics_csv",
    "export_rollouts_jsonl",
    "export_rollouts_parquet",
]
