"""From rewards to a weight update. Tensors only: no models by name, no text, no files."""

from grpo_core.learner.advantages import ADVANTAGES
from grpo_core.learner.batch import Batch, collate
from grpo_core.learner.objectives import AGGREGATIONS, KL_ESTIMATORS, OBJECTIVES
from grpo_core.learner.update import Learner, NonFinite, token_logprobs

__all__ = ["ADVANTAGES", "AGGREGATIONS", "KL_ESTIMATORS", "OBJECTIVES", "Batch", "Learner", "NonFinite", "collate", "token_logprobs"]
