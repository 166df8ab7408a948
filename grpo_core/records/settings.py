"""Settings of other trainers, under their own names -> our RunConfig, as far as they mean the same.

A name counts wherever it stands: `rollout.n` is found in `actor_rollout_ref.rollout.n` too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpo_core.config import RunConfig, nest, parse, with_changes
from grpo_core.errors import InvalidConfig

MAX_DEPTH = 8  # of nested settings


def _number(value: Any) -> Any:
    return None if isinstance(value, bool) or not isinstance(value, int | float) else value


def _whole(value: Any) -> Any:
    """A whole number; trainers write -1 for "not set"."""
    value = _number(value)
    return int(value) if value is not None and value >= 0 and value % 1 == 0 else None


def _some(value: Any) -> Any:
    return value if isinstance(value, str) and value else None


def _flag(value: Any) -> Any:
    return value if isinstance(value, bool) else None


# Models beside the policy: verl has actor.optim.lr and critic.optim.lr.
OTHERS = {"critic", "reward_model", "ref", "teacher"}

# our field -> the names that others have for it, best first, and how to read a value
NAMES: dict[str, tuple[Callable[[Any], Any], tuple[str, ...]]] = {
    "model.name": (
        _some,
        (
            "_name_or_path",
            "model_name_or_path",
            "policy.model_name",
            "model.path",
            "model.name",
            "model_name",
            "model",
        ),
    ),
    "train.steps": (
        _whole,
        ("max_steps", "trainer.total_training_steps", "grpo.max_num_steps"),
    ),
    "train.group_size": (
        _whole,
        (
            "num_generations",
            "rollout.n",
            "num_generations_per_prompt",
            "rollouts_per_example",
            "group_size",
        ),
    ),
    "train.prompts_per_step": (_whole, ("num_prompts_per_step", "data.train_batch_size")),
    "train.max_new_tokens": (
        _whole,
        (
            "max_completion_length",
            "max_response_length",
            "generation.max_new_tokens",
            "sampling.max_tokens",
            "max_new_tokens",
            "max_tokens",
        ),
    ),
    "train.temperature": (_number, ("temperature",)),
    "train.learning_rate": (_number, ("learning_rate", "optim.lr", "optimizer.kwargs.lr", "lr")),
    "train.warmup_steps": (_whole, ("warmup_steps",)),
    "train.max_grad_norm": (_number, ("max_grad_norm", "grad_clip", "max_norm")),
    "train.seed": (_whole, ("seed",)),
    "algorithm.kl_coef": (
        _number,
        ("beta", "kl_loss_coef", "reference_policy_kl_penalty", "kl_tau"),
    ),
    "algorithm.updates_per_batch": (_whole, ("num_iterations", "actor.ppo_epochs")),
    "algorithm.clip_eps_low": (
        _number,
        ("epsilon", "clip_ratio_low", "clip_ratio", "ratio_clip_min"),
    ),
    "algorithm.clip_eps_high": (
        _number,
        ("epsilon_high", "clip_ratio_high", "clip_ratio", "ratio_clip_max", "epsilon"),
    ),
    "algorithm.clip_delta": (_number, ("delta", "clip_ratio_c", "ratio_clip_c")),
    "algorithm.ratio_level": (_some, ("importance_sampling_level",)),
    "algorithm.mask_truncated": (_flag, ("mask_truncated_completions", "overlong_filter")),
    "algorithm.kl_ratio_corrected": (_flag, ("use_bias_correction_kl",)),
    "algorithm.off_policy_threshold": (_number, ("off_policy_mask_threshold",)),
    "algorithm.entropy_quantile": (_number, ("top_entropy_quantile",)),
    "algorithm.entropy_coef": (_number, ("entropy_coeff", "entropy_coef")),
}
# a word of the source -> our fields
WORDS: dict[str, dict[str, Mapping[str, str]]] = {
    "loss_type": {
        "grpo": {"algorithm.objective": "clip", "algorithm.aggregation": "sequence_mean"},
        "bnpo": {"algorithm.objective": "clip", "algorithm.aggregation": "token_mean"},
        "dapo": {"algorithm.objective": "clip", "algorithm.aggregation": "token_mean"},
        "dr_grpo": {"algorithm.objective": "clip", "algorithm.aggregation": "constant"},
        "cispo": {"algorithm.objective": "cispo", "algorithm.aggregation": "token_mean"},
        "sapo": {"algorithm.objective": "sapo", "algorithm.aggregation": "sequence_mean"},
        "vespo": {"algorithm.objective": "vespo", "algorithm.aggregation": "sequence_mean"},
    },
    "loss_agg_mode": {
        "token-mean": {"algorithm.aggregation": "token_mean"},
        "seq-mean-token-mean": {"algorithm.aggregation": "sequence_mean"},
        "seq-mean-token-sum-norm": {"algorithm.aggregation": "constant"},
    },
    "scale_rewards": {
        "group": {"algorithm.advantage": "group_std"},
        "True": {"algorithm.advantage": "group_std"},
        "batch": {"algorithm.advantage": "batch_std"},
        "none": {"algorithm.advantage": "group_mean"},
        "False": {"algorithm.advantage": "group_mean"},
    },
    "multi_objective_aggregation": {
        "normalize_then_sum": {"algorithm.advantage": "per_criterion"},
    },
    "adv_estimator": {
        "grpo": {"algorithm.advantage": "group_std"},
        "rloo": {"algorithm.advantage": "leave_one_out"},
        "gae": {"algorithm.advantage": "value"},
    },
    "norm_adv_by_std_in_grpo": {"False": {"algorithm.advantage": "group_mean"}},
    "advantage_estimator": {
        "grpo": {},  # ms-swift: scale_rewards says which
        "rloo": {"algorithm.advantage": "leave_one_out"},
    },
}
# What a trainer does where its settings do not say otherwise.
NEUTRAL = {
    "algorithm.preset": "custom",
    "algorithm.kl_coef": 0.0,
    "train.checkpoint_every": 0,
    "train.warmup_steps": 0,
    "task.name": "recorded",
    "model.name": "not recorded",
}


@dataclass(frozen=True, slots=True)
class Mapped:
    """A configuration, our fields with the names they come from, and names without counterpart."""

    config: RunConfig
    fields: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def map_settings(settings: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Mapped:
    """What of the settings means the same here; a value that we do not allow is left out.

    changes: further fields, which win.
    """
    values = dict(_leaves(settings))
    found: dict[str, tuple[str, Any]] = {}
    for ours, (read, names) in NAMES.items():
        for name in names:
            if (at := _find(values, name)) is not None and (value := read(values[at])) is not None:
                found[ours] = (at, value)
                break
    for name, words in WORDS.items():
        if (at := _find(values, name)) is not None:
            meant = words.get(str(values[at]), {})
            found |= {ours: (at, value) for ours, value in meant.items()}
    config, kept = parse(nest({**NEUTRAL, **(changes or {})})), {}
    for ours, (at, value) in found.items():
        if changes and ours in changes:
            continue
        try:
            config = with_changes(config, {ours: value})
            kept[ours] = at
        except InvalidConfig:  # a value, or a combination, that we do not have
            continue
    used = set(kept.values())
    return Mapped(config, kept, tuple(at for at in values if at not in used))


def _find(values: Mapping[str, Any], name: str) -> str | None:
    """The dotted name of a setting of the policy that is `name` or ends in it, the shortest."""
    ends = [
        at
        for at in values
        if (at == name or at.endswith(f".{name}")) and OTHERS.isdisjoint(at.split("."))
    ]
    return min(ends, key=len, default=None)


def _leaves(settings: Mapping[str, Any], before: str = "", depth: int = 0) -> Iterator[Any]:
    for name, value in settings.items():
        at = f"{before}{name}"
        if isinstance(value, Mapping) and depth < MAX_DEPTH:
            yield from _leaves(value, f"{at}.", depth + 1)
        elif value is not None:
            yield at, value
