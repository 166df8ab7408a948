"""From rewards to a weight update: tensors only, without models by name or files."""

from grpo_core.learner.advantages import ADVANTAGES, Siblings, advantage_parts
from grpo_core.learner.aggregation import AGGREGATIONS
from grpo_core.learner.batch import Batch, packed, separate
from grpo_core.learner.controls import KL_CONTROLS
from grpo_core.learner.critic import Critic, ValueEstimates
from grpo_core.learner.grouping import GROUPINGS
from grpo_core.learner.kl import KL_ESTIMATORS
from grpo_core.learner.logprobs import token_logprobs
from grpo_core.learner.objectives import OBJECTIVES, RATIO_LEVELS
from grpo_core.learner.packing import packing_is_exact
from grpo_core.learner.update import Learner, LearnerSettings
from grpo_core.learner.workers import ALONE, Workers

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "ALONE",
    "GROUPINGS",
    "KL_CONTROLS",
    "KL_ESTIMATORS",
    "OBJECTIVES",
    "RATIO_LEVELS",
    "Batch",
    "Critic",
    "Learner",
    "LearnerSettings",
    "Siblings",
    "ValueEstimates",
    "Workers",
    "advantage_parts",
    "packed",
    "packing_is_exact",
    "separate",
    "token_logprobs",
]
