"""TRL's metrics under our names where they mean the same, else under TRL's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

OURS = {
    "reward": "reward_mean",
    "frac_reward_zero_std": "tied_group_frac",
    "completions/mean_length": "completion_tokens_mean",
    "completions/max_length": "completion_tokens_max",
    "completions/clipped_ratio": "truncated_frac",
    "clip_ratio/low_mean": "clip_low_frac",
    "clip_ratio/high_mean": "clip_high_frac",
    "clip_ratio/region_mean": "clip_frac",
    "clip_ratio": "clip_frac",
    "tools/call_frequency": "tool_calls_mean",
    "tools/failure_frequency": "tool_error_frac",
    "step_time": "step_seconds",
    # Up to TRL 0.2x the mean of the groups' deviations, ours is over all rows: it is computed anew.
    "reward_std": "trl/reward_std",
}
HELD_OUT = {"reward": "heldout/reward", "completions/mean_length": "heldout/completion_tokens"}
SAME = ("loss", "policy_loss", "kl", "entropy", "entropy_coef", "grad_norm", "learning_rate")
LEFT_OUT = ("epoch", "total_flos", "step")


def named(metrics: Mapping[str, object]) -> dict[str, float]:
    """Finite numbers under our names. rewards/NAME/mean is our score/NAME."""
    found = {}
    for name, value in metrics.items():
        if (
            name in LEFT_OUT
            or name.startswith("train_")
            or isinstance(value, bool)
            or not isinstance(value, int | float)
        ):
            continue
        if math.isfinite(value):
            found[our_name(name)] = float(value)
    return found


def our_name(name: str) -> str:
    """Ours for a name of TRL's. Those of an evaluation begin with eval_ there, heldout/ here."""
    if name in SAME:
        return name
    evaluated = name.removeprefix("eval_")
    held_out = evaluated != name
    if evaluated.startswith("rewards/") and evaluated.endswith("/mean"):
        criterion = evaluated.removeprefix("rewards/").removesuffix("/mean")
        return f"heldout/{criterion}" if held_out else f"score/{criterion}"
    return (HELD_OUT.get(evaluated) if held_out else OURS.get(name)) or name


class NewValues:
    """What TRL appended to its lists of metrics since the last look; it clears them at each log."""

    def __init__(self) -> None:
        self._seen: dict[str, int] = {}

    def take(self, lists: Mapping[str, Sequence[float]]) -> dict[str, float]:
        """The mean of the new values of each metric, as TRL averages them."""
        means = {}
        for name, values in lists.items():
            # A running total, which TRL keeps as a list of one.
            first = 0 if name == "num_tokens" else self._seen.get(name, 0)
            new = [v for v in values[first:] if math.isfinite(v)]
            self._seen[name] = len(values)
            if new:
                means[name] = sum(new) / len(new)
        return means

    def cleared(self) -> None:
        self._seen.clear()
