"""From rewards to a weight update. Tensors only: no models by name, no files."""

from grpo_core.learner.advantages import ADVANTAGES, Siblings
from grpo_core.learner.aggregation import AGGREGATIONS
from grpo_core.learner.batch import Batch, packed, separate
from grpo_core.learner.controls import KL_CONTROLS
from grpo_core.learner.critic import Critic, Judged
from grpo_core.learner.grouping import GROUPINGS
from grpo_core.learner.kl import KL_ESTIMATORS
from grpo_core.learner.logprobs import packing_is_exact, token_logprobs
from grpo_core.learner.objectives import OBJECTIVES, RATIO_LEVELS
from grpo_core.learner.update import Learner, NonFinite

__all__ = [
    "ADVANTAGES",
    "AGGREGATIONS",
    "GROUPINGS",
    "KL_CONTROLS",
    "KL_ESTIMATORS",
    "OBJECTIVES",
    "RATIO_LEVELS",
    "Batch",
    "Critic",
    "Judged",
    "Learner",
    "NonFinite",
    "Siblings",
    "packed",
    "packing_is_exact",
    "separate",
    "token_logprobs",
]
