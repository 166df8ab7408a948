"""From rewards to a weight update. Tensors only: no models by name, no text, no files."""

from grpo_core.learner.advantages import ADVANTAGES
from grpo_core.learner.batch import Batch, packed, separate
from grpo_core.learner.critic import Critic, Judged
from grpo_core.learner.logprobs import packing_is_exact, token_logprobs
from grpo_core.learner.objectives import AGGREGATIONS, KL_ESTIMATORS, OBJECTIVES
from grpo_core.learner.update import Learner, NonFinite

__all__ = ["ADVANTAGES", "AGGREGATIONS", "KL_ESTIMATORS", "OBJECTIVES", "Batch", "Critic", "Judged", "Learner", "NonFinite", "packed", "packing_is_exact", "separate", "token_logprobs"]
