"""Combinations of settings that make no sense, each with its reason and the way out. One row of a table each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from grpo_core.config.sections import Sections
from grpo_core.errors import FieldProblem

OWN_RATIO = (
    "vespo",
    "gmpo",
    "reinforce",
    "trust_region",
)  # objectives that make their own sequence ratio, or have none


@dataclass(frozen=True, slots=True)
class Conflict:
    """`field` cannot have its value when `when` holds."""

    field: str
    when: Callable[[Sections], bool]
    problem: str
    hint: str


def _critic(c: Sections) -> bool:
    return c.algorithm.advantage == "value"


CONFLICTS: tuple[Conflict, ...] = (
    Conflict(
        "task.path",
        lambda c: c.task.name == "file" and not c.task.path,
        "no file and no dataset is named",
        "Name one, or choose a built-in task.",
    ),
    Conflict(
        "task.path",
        lambda c: c.task.name != "file" and bool(c.task.path),
        "a built-in task makes its own prompts",
        "Choose the task `file`, or leave it empty.",
    ),
    Conflict(
        "algorithm.ref_every",
        lambda c: c.algorithm.ref_every > 0 and c.model.lora_rank > 0,
        "with LoRA the reference is the model without its adapters, which cannot move",
        "Use 0, or a LoRA rank of 0.",
    ),
    Conflict(
        "algorithm.objective",
        lambda c: c.algorithm.objective == "trust_region" and c.model.lora_rank > 0,
        "the trust region's step is taken in all weights, and LoRA trains only adapters",
        "Use another objective, or a LoRA rank of 0.",
    ),
    Conflict(
        "train.eval_samples",
        lambda c: c.train.eval_mode == "greedy" and c.train.eval_samples > 1,
        "greedy answers are all alike",
        "Use 1, or sampled answers.",
    ),
    Conflict(
        "rubric.criteria",
        lambda c: bool(c.rubric.criteria) and not any(k.weight > 0 for k in c.rubric.criteria),
        "all weights are 0, so every reward would be 0",
        "Give at least one criterion a weight above 0.",
    ),
    Conflict(
        "rubric.criteria",
        lambda c: len({k.name for k in c.rubric.criteria}) < len(c.rubric.criteria),
        "two criteria share a name",
        "Give each its own name.",
    ),
    Conflict(
        "rubric.clip_low",
        lambda c: (
            None not in (c.rubric.clip_low, c.rubric.clip_high)
            and c.rubric.clip_low >= c.rubric.clip_high
        ),
        "it is not below the highest reward, so all rewards would be equal",
        "Lower it, raise the highest reward, or leave one empty.",
    ),
    Conflict(
        "rubric.scale",
        lambda c: c.rubric.scale and c.algorithm.advantage in ("rank", "per_criterion"),
        "ranks and standardised criteria do not depend on the scale of the reward",
        "Switch it off, or use the advantage group_mean.",
    ),
    Conflict(
        "rubric.clip_high",
        lambda c: (
            c.algorithm.advantage == "per_criterion"
            and (c.rubric.clip_low, c.rubric.clip_high) != (None, None)
        ),
        "the advantage per_criterion never looks at the total reward that would be clipped",
        "Leave both limits empty, or use another advantage.",
    ),
    Conflict(
        "algorithm.clip_delta",
        lambda c: (
            c.algorithm.clip_delta is not None
            and c.algorithm.clip_delta <= 1 + c.algorithm.clip_eps_high
        ),
        "it lies inside the clip range, so it would cut what the range allows",
        "Use more than 1 + the high clip range, or leave it empty.",
    ),
    Conflict(
        "algorithm.clip_delta",
        lambda c: c.algorithm.clip_delta is not None and c.algorithm.objective != "clip",
        "only the objective clip has a second side",
        "Leave it empty, or use the objective clip.",
    ),
    Conflict(
        "algorithm.ratio_level",
        lambda c: c.algorithm.ratio_level == "sequence" and c.algorithm.objective in OWN_RATIO,
        "this objective takes no ratio from here: it makes its own over the sequence, or has none",
        "Use token, or an objective such as clip.",
    ),
    Conflict(
        "algorithm.kl_ratio_corrected",
        lambda c: c.algorithm.kl_ratio_corrected and c.algorithm.kl_estimator != "k3",
        "the correction is derived for k3 alone",
        "Use the estimator k3, or switch the correction off.",
    ),
    Conflict(
        "algorithm.kl_ratio_corrected",
        lambda c: c.algorithm.kl_ratio_corrected and c.algorithm.kl_coef == 0,
        "with a KL coefficient of 0 there is no KL term to correct",
        "Raise the KL coefficient, or switch the correction off.",
    ),
    Conflict(
        "algorithm.measure_kl",
        lambda c: not c.algorithm.measure_kl and c.algorithm.kl_coef > 0,
        "with a KL coefficient above 0 the policy is held near its reference, so there must be one",
        "Switch it on, or use a KL coefficient of 0.",
    ),
    Conflict(
        "algorithm.measure_kl",
        lambda c: not c.algorithm.measure_kl and c.algorithm.kl_control != "fixed",
        "this KL control steers by the KL, so it must be measured",
        "Switch it on, or use the KL control fixed.",
    ),
    Conflict(
        "algorithm.measure_kl",
        lambda c: not c.algorithm.measure_kl and c.algorithm.ref_every > 0,
        "without it there is no reference that could move",
        "Switch it on, or move the reference never (0).",
    ),
    Conflict(
        "algorithm.kl_control",
        lambda c: c.algorithm.kl_control == "adaptive" and c.algorithm.kl_coef == 0,
        "a coefficient of 0 stays 0 however it is multiplied",
        "Start from a KL coefficient above 0, such as 0.02.",
    ),
    Conflict(
        "algorithm.entropy_coef",
        lambda c: (
            c.algorithm.entropy_target is not None
            and c.algorithm.entropy_coef > c.algorithm.entropy_coef_max
        ),
        "it starts above its own largest value",
        "Lower it, or raise the most that the bonus may be.",
    ),
    Conflict(
        "algorithm.off_policy_threshold",
        lambda c: (
            c.algorithm.off_policy_threshold is not None and c.algorithm.updates_per_batch == 1
        ),
        "with one update per batch every completion comes from the present policy, so none would ever be dropped",
        "Use several updates per batch, or leave it empty.",
    ),
    *(
        Conflict(
            field,
            lambda c, fits=fits: c.algorithm.objective == "trust_region" and not fits(c.algorithm),
            problem,
            hint,
        )
        for field, fits, problem, hint in (
            (
                "algorithm.updates_per_batch",
                lambda a: a.updates_per_batch == 1,
                "a trust region takes one step a batch, as far as its KL allows; a second would leave the region around the sampling policy",
                "Use 1.",
            ),
            (
                "algorithm.entropy_coef",
                lambda a: a.entropy_coef == 0 and a.entropy_target is None,
                "the trust region's line search knows the policy and KL terms only",
                "Use 0 and no entropy target, or another objective.",
            ),
            (
                "algorithm.entropy_quantile",
                lambda a: a.entropy_quantile == 1,
                "the trust region is measured over all tokens",
                "Use 1, or another objective.",
            ),
            (
                "algorithm.kl_estimator",
                lambda a: a.kl_estimator != "exact" or a.kl_coef == 0,
                "the trust region's line search looks at sampled tokens only",
                "Use k3, or a KL coefficient of 0.",
            ),
            (
                "algorithm.advantage",
                lambda a: a.advantage != "value",
                "the trust region's step has no part for a critic's own loss",
                "Use group_std, or the objective clip.",
            ),
        )
    ),
    Conflict(
        "algorithm.dynamic_sampling",
        lambda c: c.algorithm.dynamic_sampling > 0 and c.algorithm.grouping != "prompt",
        "a tied prompt still is_informative where completions are compared across prompts",
        "Use 0, or the grouping prompt.",
    ),
    Conflict(
        "algorithm.updates_per_batch",
        lambda c: c.algorithm.updates_per_batch > 1 and c.algorithm.objective == "reinforce",
        "`reinforce` has no ratio, so every update after the first would learn from a policy that no longer exists",
        "Use 1, or set algorithm.objective to clip.",
    ),
    Conflict(
        "algorithm.value_coef",
        lambda c: _critic(c) and c.algorithm.value_coef == 0,
        "a critic that is not trained foresees the same everywhere, and the advantage value compares with nothing else",
        "0.5 is usual; to compare siblings without a critic set algorithm.advantage to group_std.",
    ),
    Conflict(
        "algorithm.ratio_level",
        lambda c: _critic(c) and c.algorithm.ratio_level == "sequence",
        "a critic judges every token, and a sequence has one ratio for all of them",
        "Use token, or an advantage by siblings.",
    ),
    Conflict(
        "algorithm.objective",
        lambda c: _critic(c) and c.algorithm.objective in ("vespo", "gmpo"),
        "it pushes a completion as a whole, and a critic judges every token",
        "Use clip, or an advantage by siblings.",
    ),
    Conflict(
        "algorithm.off_policy_threshold",
        lambda c: _critic(c) and c.algorithm.off_policy_threshold is not None,
        "it drops completions with a negative advantage, and with a critic each token has its own",
        "Leave it empty, or use an advantage by siblings.",
    ),
    Conflict(
        "algorithm.grouping",
        lambda c: _critic(c) and c.algorithm.grouping != "prompt",
        "a critic compares with no siblings, so it does not matter who they are",
        "Use prompt, or an advantage by siblings.",
    ),
    Conflict(
        "algorithm.dynamic_sampling",
        lambda c: _critic(c) and c.algorithm.dynamic_sampling > 0,
        "a tied group still is_informative where a critic judges",
        "Use 0, or an advantage by siblings.",
    ),
)


def conflicts(config: Sections) -> list[FieldProblem]:
    """Every row that holds, with the value that stands there."""
    return [
        FieldProblem(c.field, _value(config, c.field), c.problem, c.hint)
        for c in CONFLICTS
        if c.when(config)
    ]


def _value(config: Sections, field: str) -> object:
    section, _, name = field.partition(".")
    value = getattr(getattr(config, section), name)
    return {k.name: k.weight for k in value} if field == "rubric.criteria" else value
