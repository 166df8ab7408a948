"""Combinations of settings that make no sense: one row of a table each, with reason and hint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from grpo_core.config.sections import AlgorithmConfig, Sections
from grpo_core.errors import FieldProblem

# Objectives that compute their own ratio over the sequence, or use no ratio.
OWN_RATIO = ("vespo", "gmpo", "reinforce", "trust_region")


@dataclass(frozen=True, slots=True)
class Conflict:
    """`field` cannot have its value while `when` is true."""

    field: str
    when: Callable[[Sections], bool]
    problem: str
    hint: str


def _critic(c: Sections) -> bool:
    return c.algorithm.advantage == "value"


def _clips_to_nothing(c: Sections) -> bool:
    low, high = c.rubric.clip_low, c.rubric.clip_high
    return low is not None and high is not None and low >= high


def _trust_region(
    field: str, fits: Callable[[AlgorithmConfig], bool], problem: str, hint: str
) -> Conflict:
    """A value that the trust region does not allow, because `fits` is false."""

    def when(c: Sections) -> bool:
        return c.algorithm.objective == "trust_region" and not fits(c.algorithm)

    return Conflict(f"algorithm.{field}", when, problem, hint)


CONFLICTS: tuple[Conflict, ...] = (
    Conflict(
        "task.path",
        lambda c: c.task.name == "file" and not c.task.path,
        "no file or dataset is given",
        "Give one, or choose a built-in task.",
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
        "with LoRA the reference is the model without its adapters, so it cannot move",
        "Use 0, or a LoRA rank of 0.",
    ),
    Conflict(
        "algorithm.objective",
        lambda c: c.algorithm.objective == "trust_region" and c.model.lora_rank > 0,
        "the trust region changes all weights, but LoRA trains only adapters",
        "Use another objective, or a LoRA rank of 0.",
    ),
    Conflict(
        "train.workers",
        lambda c: c.train.workers > c.train.prompts_per_step,
        "a step has fewer prompts, so some workers would have nothing to do",
        "Use at most train.prompts_per_step, or more prompts.",
    ),
    Conflict(
        "train.workers",
        lambda c: c.train.workers > 1 and c.algorithm.objective == "trust_region",
        "the trust region's line search goes over all weights in one process",
        "Use 1, or another objective.",
    ),
    Conflict(
        "train.eval_samples",
        lambda c: c.train.eval_mode == "greedy" and c.train.eval_samples > 1,
        "all greedy answers to a prompt are equal",
        "Use 1, or the mode sampled.",
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
        _clips_to_nothing,
        "it is not below the highest reward, so all rewards would be equal",
        "Lower it, raise the highest reward, or leave one empty.",
    ),
    Conflict(
        "rubric.scale",
        lambda c: c.rubric.scale and c.algorithm.advantage in ("rank", "per_criterion"),
        "this advantage does not depend on the scale of the reward",
        "Switch it off, or use the advantage group_mean.",
    ),
    Conflict(
        "rubric.clip_high",
        lambda c: (
            c.algorithm.advantage == "per_criterion"
            and (c.rubric.clip_low, c.rubric.clip_high) != (None, None)
        ),
        "it limits the total reward, which the advantage per_criterion does not use",
        "Leave both limits empty, or use another advantage.",
    ),
    Conflict(
        "algorithm.clip_delta",
        lambda c: (
            c.algorithm.clip_delta is not None
            and c.algorithm.clip_delta <= 1 + c.algorithm.clip_eps_high
        ),
        "it lies inside the clip range, so it would cut ratios that the range allows",
        "Use more than 1 + the high clip range, or leave it empty.",
    ),
    Conflict(
        "algorithm.clip_delta",
        lambda c: c.algorithm.clip_delta is not None and c.algorithm.objective != "clip",
        "only the objective clip has a second clip limit",
        "Leave it empty, or use the objective clip.",
    ),
    Conflict(
        "algorithm.ratio_level",
        lambda c: c.algorithm.ratio_level == "sequence" and c.algorithm.objective in OWN_RATIO,
        "this objective ignores it: it computes its own ratio over the sequence, or uses none",
        "Use token, or an objective such as clip.",
    ),
    Conflict(
        "algorithm.kl_ratio_corrected",
        lambda c: c.algorithm.kl_ratio_corrected and c.algorithm.kl_estimator != "k3",
        "the correction is derived for k3 only",
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
        "a KL coefficient above 0 needs a reference, and without measuring KL there is none",
        "Switch it on, or use a KL coefficient of 0.",
    ),
    Conflict(
        "algorithm.measure_kl",
        lambda c: not c.algorithm.measure_kl and c.algorithm.kl_control != "fixed",
        "this KL control depends on the measured KL",
        "Switch it on, or use the KL control fixed.",
    ),
    Conflict(
        "algorithm.measure_kl",
        lambda c: not c.algorithm.measure_kl and c.algorithm.ref_every > 0,
        "without it there is no reference to move",
        "Switch it on, or set algorithm.ref_every to 0.",
    ),
    Conflict(
        "algorithm.kl_control",
        lambda c: c.algorithm.kl_control == "adaptive" and c.algorithm.kl_coef == 0,
        "this control multiplies the coefficient, so a coefficient of 0 stays 0",
        "Start from a KL coefficient above 0, such as 0.02.",
    ),
    Conflict(
        "algorithm.entropy_coef",
        lambda c: (
            c.algorithm.entropy_target is not None
            and c.algorithm.entropy_coef > c.algorithm.entropy_coef_max
        ),
        "its first value is above its largest value",
        "Lower it, or raise algorithm.entropy_coef_max.",
    ),
    Conflict(
        "algorithm.off_policy_threshold",
        lambda c: (
            c.algorithm.off_policy_threshold is not None
            and c.algorithm.updates_per_batch == 1
            and c.rollout.engine == "own"
        ),
        "with one update per batch every completion comes from the current policy, "
        "so none is ever dropped",
        "Use several updates per batch, or leave it empty.",
    ),
    _trust_region(
        "updates_per_batch",
        lambda a: a.updates_per_batch == 1,
        "a trust region takes one step per batch, as far as its KL allows; "
        "a second step would leave the region around the sampling policy",
        "Use 1.",
    ),
    _trust_region(
        "entropy_coef",
        lambda a: a.entropy_coef == 0 and a.entropy_target is None,
        "the trust region's line search uses only the policy and KL terms",
        "Use 0 and no entropy target, or another objective.",
    ),
    _trust_region(
        "entropy_quantile",
        lambda a: a.entropy_quantile == 1,
        "the trust region is measured over all tokens",
        "Use 1, or another objective.",
    ),
    _trust_region(
        "kl_estimator",
        lambda a: a.kl_estimator != "exact" or a.kl_coef == 0,
        "the trust region's line search uses only the sampled tokens",
        "Use k3, or a KL coefficient of 0.",
    ),
    _trust_region(
        "advantage",
        lambda a: a.advantage != "value",
        "the trust region's step does not include the loss of a critic",
        "Use group_std, or the objective clip.",
    ),
    Conflict(
        "algorithm.dynamic_sampling",
        lambda c: c.algorithm.dynamic_sampling > 0 and c.algorithm.grouping != "prompt",
        "with this grouping a tied prompt can still have advantages other than 0",
        "Use 0, or the grouping prompt.",
    ),
    Conflict(
        "algorithm.updates_per_batch",
        lambda c: c.algorithm.updates_per_batch > 1 and c.algorithm.objective == "reinforce",
        "`reinforce` has no ratio, so updates after the first would use completions "
        "of an older policy without correction",
        "Use 1, or set algorithm.objective to clip.",
    ),
    Conflict(
        "algorithm.value_coef",
        lambda c: _critic(c) and c.algorithm.value_coef == 0,
        "a critic that is not trained predicts the same value everywhere, "
        "and the advantage value uses no other baseline",
        "0.5 is usual. To compare siblings without a critic, set algorithm.advantage to group_std.",
    ),
    Conflict(
        "algorithm.ratio_level",
        lambda c: _critic(c) and c.algorithm.ratio_level == "sequence",
        "a critic gives each token its own advantage, but a sequence has one ratio",
        "Use token, or an advantage without a critic.",
    ),
    Conflict(
        "algorithm.objective",
        lambda c: _critic(c) and c.algorithm.objective in ("vespo", "gmpo"),
        "it needs one advantage per completion, but a critic gives each token a different one",
        "Use clip, or an advantage without a critic.",
    ),
    Conflict(
        "algorithm.off_policy_threshold",
        lambda c: _critic(c) and c.algorithm.off_policy_threshold is not None,
        "it drops completions with a negative advantage, but a critic gives each token its own",
        "Leave it empty, or use an advantage without a critic.",
    ),
    Conflict(
        "algorithm.grouping",
        lambda c: _critic(c) and c.algorithm.grouping != "prompt",
        "a critic does not compare siblings, so the grouping has no effect",
        "Use prompt, or an advantage without a critic.",
    ),
    Conflict(
        "algorithm.dynamic_sampling",
        lambda c: _critic(c) and c.algorithm.dynamic_sampling > 0,
        "with a critic a tied group can still have advantages other than 0",
        "Use 0, or an advantage without a critic.",
    ),
    Conflict(
        "rollout.url",
        lambda c: c.rollout.engine == "vllm" and not c.rollout.url,
        "no server is given",
        "Write its address, such as http://127.0.0.1:8000, or set rollout.engine to own.",
    ),
    Conflict(
        "rollout.correction",
        lambda c: c.rollout.engine == "own" and c.rollout.correction != "none",
        "the own engine samples from the model that is trained",
        "Use none, or set rollout.engine to vllm.",
    ),
    Conflict(
        "rollout.correction",
        lambda c: c.rollout.correction != "none" and c.algorithm.objective == "trust_region",
        "the trust region's line search does not know the server's probabilities",
        "Use none, or another objective.",
    ),
)


def conflicts(config: Sections) -> list[FieldProblem]:
    """Every conflict of this configuration, with the value of its field."""
    return [
        FieldProblem(c.field, _value(config, c.field), c.problem, c.hint)
        for c in CONFLICTS
        if c.when(config)
    ]


def _value(config: Sections, field: str) -> object:
    section, _, name = field.partition(".")
    value = getattr(getattr(config, section), name)
    return {k.name: k.weight for k in value} if field == "rubric.criteria" else value
