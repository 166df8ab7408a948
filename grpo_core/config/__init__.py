"""RunConfig: all settings of a run, with their options, conflicts and presets."""

from grpo_core.config import options
from grpo_core.config.presets import PRESETS, with_preset
from grpo_core.config.schema import (
    RunConfig,
    fields_by_name,
    flatten,
    nest,
    parse,
    read_json,
    with_changes,
)
from grpo_core.config.sections import (
    AlgorithmConfig,
    Criterion,
    ModelConfig,
    RubricConfig,
    TaskConfig,
    TrainConfig,
    default_learning_rate,
)

__all__ = [
    "PRESETS",
    "AlgorithmConfig",
    "Criterion",
    "ModelConfig",
    "RubricConfig",
    "RunConfig",
    "TaskConfig",
    "TrainConfig",
    "default_learning_rate",
    "fields_by_name",
    "flatten",
    "nest",
    "options",
    "parse",
    "read_json",
    "with_changes",
    "with_preset",
]
