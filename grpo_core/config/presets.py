"""Presets: the algorithms by name, each a set of values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpo_core.errors import FieldProblem, InvalidConfig

# A field that a preset does not name keeps its default.
PRESETS: dict[str, dict[str, Any]] = {
    "GRPO": {
        "advantage": "group_std",
        "objective": "clip",
        "clip_eps_low": 0.2,
        "clip_eps_high": 0.2,
        "kl_coef": 0.02,
        "aggregation": "token_mean",
    },
    "PPO (critic)": {
        "advantage": "value",
        "gae_gamma": 1.0,
        "gae_lambda": 0.95,
        "value_coef": 0.5,
        "entropy_coef": 0.0,
        "objective": "clip",
        "clip_eps_low": 0.2,
        "clip_eps_high": 0.2,
        "kl_coef": 0.02,
        "aggregation": "token_mean",
    },
    "Dr. GRPO": {
        "advantage": "group_mean",
        "objective": "clip",
        "clip_eps_low": 0.2,
        "clip_eps_high": 0.2,
        "kl_coef": 0.0,
        "aggregation": "constant",
    },
    "DAPO": {
        "advantage": "group_std",
        "objective": "clip",
        "clip_eps_low": 0.2,
        "clip_eps_high": 0.28,
        "kl_coef": 0.0,
        "aggregation": "token_mean",
        "dynamic_sampling": 2,
    },
    "GSPO": {
        "advantage": "group_std",
        "objective": "clip",
        "ratio_level": "sequence",
        "clip_eps_low": 3e-4,
        "clip_eps_high": 4e-4,
        "kl_coef": 0.0,
        "aggregation": "sequence_mean",
    },
    "CISPO": {
        "advantage": "group_std",
        "objective": "cispo",
        "cispo_cap": 5.0,
        "kl_coef": 0.0,
        "aggregation": "token_mean",
    },
    "RLOO": {
        "advantage": "leave_one_out",
        "objective": "reinforce",
        "kl_coef": 0.02,
        "kl_estimator": "k2",
        "aggregation": "constant",
    },
    "Trust-region GRPO": {
        "advantage": "group_std",
        "objective": "trust_region",
        "trust_region_delta": 0.01,
        "kl_coef": 0.0,
        "aggregation": "token_mean",
    },
}


def with_preset(flat: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """`flat`, with the values of `preset` for the fields that `flat` does not set.

    Raises InvalidConfig for an unknown preset.
    """
    if preset not in PRESETS:
        hint = f"Known: {', '.join(PRESETS)}."
        problem = FieldProblem("algorithm.preset", preset, "there is no such preset", hint)
        raise InvalidConfig([problem])
    values = {f"algorithm.{name}": value for name, value in PRESETS[preset].items()}
    return {"algorithm.preset": preset, **values, **flat}
