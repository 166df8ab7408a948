"""What samples a run's completions where the policy does not do it itself."""

from __future__ import annotations

from grpo_core.config import RunConfig
from grpo_core.learner.workers import Workers
from grpo_core.models import Policy
from grpo_core.rollout.vllm_engine import VllmEngine, Watch
from grpo_core.training.control import RunControl
from grpo_core.types import Noticed


def sampling_engine(
    config: RunConfig, policy: Policy, control: RunControl, workers: Workers
) -> VllmEngine | None:
    """A connection to the run's server; None: the policy samples itself.

    Raises InvalidConfig for a server that may not be asked, and StudioError for one that is not
    there. Only worker 0 can ask a person to mend a server; the others fail with what they met.
    """
    if config.rollout.engine == "own":
        return None
    points = control.points
    watch = Watch(
        points.check_interrupt,
        lambda text: points.emit(Noticed(control.step_now, "vllm", "warning", text)),
        points.hold if workers.is_first else None,
    )
    return VllmEngine(config, policy, watch)
