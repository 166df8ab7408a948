"""The sections of a run's configuration: every field with its title, help, unit and bounds."""

from grpo_core.config.sections.algorithm import AlgorithmConfig
from grpo_core.config.sections.fields import Section
from grpo_core.config.sections.model import ModelConfig
from grpo_core.config.sections.rollout import RolloutConfig
from grpo_core.config.sections.rubric import Criterion, RubricConfig
from grpo_core.config.sections.task import TaskConfig
from grpo_core.config.sections.train import TrainConfig, default_learning_rate

__all__ = [
    "AlgorithmConfig",
    "Criterion",
    "ModelConfig",
    "RolloutConfig",
    "RubricConfig",
    "Section",
    "Sections",
    "TaskConfig",
    "TrainConfig",
    "default_learning_rate",
]


class Sections(Section):
    """All sections together, without the rules that connect them; see schema.RunConfig."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rubric: RubricConfig = RubricConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
