"""What each choice of the algorithm does to a group, in one sentence, and its formula with the fields that appear in it.

The form, the command line and the documents read these tables; RunConfig allows exactly their keys. Formulas are templates:
`{field}` is the field's value, `{low}` and `{high}` the ends of the clip range; what stands after a `;` becomes a line of its own. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """One choice: a sentence that starts in lower case, and a formula for the form's objective line."""

    help: str
    formula: str = ""


GROUPINGS = {
    "prompt": Option(
        "a completion is compared with the other completions of its own prompt",
        "over its prompt's completions",
    ),
    "task": Option(
        "compared with every completion of the step that shares its task, or its `group_key` column",
        "over the task's completions",
    ),
    "similarity": Option(
        "compared with the completions of all prompts whose text is alike, by TF-IDF",
        "over the completions of similar prompts",
    ),
    "batch": Option("compared with every completion of the step", "over the step's completions"),
}

ADVANTAGES = {
    "group_std": Option(
        "in the group's own standard deviations, so a near-tie counts as much as a clear win",
        "(r − mean)/(std + 1e-4)",
    ),
    "group_mean": Option("in the reward's own unit, so a near-tie stays small", "r − mean"),
    "batch_std": Option(
        "centred in the group, divided by the standard deviation of the whole step",
        "(r − mean)/(std of the step + 1e-4)",
    ),
    "leave_one_out": Option("against the mean of the other siblings", "r − mean of the siblings"),
    "rank": Option(
        "by place in the group alone: how far apart the rewards are does not matter",
        "(rank − mean rank)/(std of ranks)",
    ),
    "per_criterion": Option(
        "each criterion is standardised in the group before the weights add them up, so none drowns another",
        "Σ w·(s − mean)/(std + 1e-4), over its std in the step",
    ),
    "value": Option(
        "not with siblings: each token against what a critic foresaw before it (PPO)",
        "GAE(γ = {gae_gamma}, λ = {gae_lambda}) of a critic, whitened over the step's tokens",
    ),
}

RATIO_LEVELS = {
    "token": Option("each token has its own ratio and is clipped alone", "w = p/p_old"),
    "sequence": Option(
        "all tokens of a completion share the geometric mean of their ratios and are clipped together",
        "w = (Π p/p_old)^(1/tokens)",
    ),
}

OBJECTIVES = {
    "clip": Option(
        "stops pushing a token once its probability moved by the clip range",
        "−min({w}·A, clip(w, {low}, {high})·A)",
    ),
    "cispo": Option(
        "pushes every token by its advantage, with the ratio as a weight that is capped and carries no gradient",
        "−sg(min(w, {cispo_cap}))·A·log p",
    ),
    "sapo": Option(
        "fades the push out smoothly as the ratio leaves 1, faster for bad completions",
        "−A·σ(τ·(w − 1))·4/τ; τ = {sapo_tau_pos} if A > 0 else {sapo_tau_neg}",
    ),
    "vespo": Option(
        "weighs a whole completion down as its probability leaves the sampled one",
        "−sg(φ)·A·log p; φ = e^λ·W^k·e^(−λW), W = p/p_old of the completion; (k, λ) = ({vespo_k_pos}, {vespo_lambda_pos}) if A ≥ 0 else ({vespo_k_neg}, {vespo_lambda_neg})",
    ),
    "gmpo": Option(
        "pushes a completion by the geometric mean of its clipped ratios, so a single odd token has no say",
        "−A·exp(mean over tokens of log w, clipped at ±{gmpo_eps})",
    ),
    "spo": Option(
        "pushes less the further a token's ratio has moved, not at all at the edge of the clip range, and back beyond it",
        "−(w·A − |A|·(w − 1)²/(2ε)); ε = {clip_eps_high} if A > 0 else {clip_eps_low}",
    ),
    "reinforce": Option("pushes by the advantage, without limit", "−A·log p"),
    "trust_region": Option(
        "lets no step move the policy by more than a set KL, instead of clipping tokens or choosing a learning rate",
        "−w·A; KL(old ‖ new) ≤ {trust_region_delta}",
    ),
}

KL_ESTIMATORS = {
    "k1": Option(
        "unbiased as a measure, negative on half the tokens; trained on, its gradient averages to 0 and holds nothing",
        "log p/ref",
    ),
    "k2": Option(
        "never negative, small variance, biased as a measure; trained on, it has the gradient of the true KL",
        "d²/2, d = log ref/p",
    ),
    "k3": Option(
        "never negative and unbiased; large where the reference finds a token far likelier",
        "e^d − d − 1, d = log ref/p",
    ),
    "exact": Option(
        "the whole sum over the vocabulary, without sampling noise; needs the memory of both distributions",
        "Σ p·log(p/ref) over the vocabulary",
    ),
}

KL_CONTROLS = {
    "fixed": Option("the coefficient stays"),
    "adaptive": Option(
        "the coefficient rises while KL is above its target and, once KL has been there, falls below it; with group_std start it near 0.8 to hold a low target"
    ),
    "hard": Option(
        "no update is made while KL is above its target; the weights go a tenth of the way back to the reference instead"
    ),
}

AGGREGATIONS = {
    "sequence_mean": Option(
        "each completion weighs the same, so a token of a short one weighs more",
        "mean over tokens, then over completions",
    ),
    "token_mean": Option("each token of the step weighs the same", "mean over the step's tokens"),
    "constant": Option(
        "each token weighs the same in every step, whatever the lengths",
        "sum over tokens / (completions · {max_new_tokens})",
    ),
}
