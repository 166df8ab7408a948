"""The choices of the algorithm: one sentence for each, and its formula.

The form, the command line and the documents read these tables. RunConfig allows exactly their keys.
Formulas are templates: `{field}` is the field's value, `{low}` and `{high}` are the ends of the
clip range. Text after a `;` becomes a line of its own. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Option:
    """One choice: a sentence that starts in lower case, and a formula for the form's objective."""

    help: str
    formula: str = ""


GROUPINGS = {
    "prompt": Option(
        "a completion is compared with the other completions of its own prompt",
        "over its prompt's completions",
    ),
    "task": Option(
        "a completion is compared with all completions of the step "
        "that share its task, or its `group_key` column",
        "over the task's completions",
    ),
    "similarity": Option(
        "a completion is compared with the completions of all prompts with similar text, by TF-IDF",
        "over the completions of similar prompts",
    ),
    "batch": Option(
        "a completion is compared with all completions of the step",
        "over the step's completions",
    ),
}

ADVANTAGES = {
    "group_std": Option(
        "in units of the group's standard deviation, so a near-tie counts as much as a clear win",
        "(r − mean)/(std + 1e-4)",
    ),
    "group_mean": Option("in units of the reward, so a near-tie stays small", "r − mean"),
    "batch_std": Option(
        "centred in the group, divided by the standard deviation of the whole step",
        "(r − mean)/(std of the step + 1e-4)",
    ),
    "leave_one_out": Option("against the mean of the other siblings", "r − mean of the siblings"),
    "rank": Option(
        "by rank in the group; the size of the differences does not matter",
        "(rank − mean rank)/(std of ranks)",
    ),
    "per_criterion": Option(
        "each criterion is standardised in the group before the weighted sum, "
        "so none hides another by its scale",
        "Σ w·(s − mean)/(std + 1e-4), over its std in the step",
    ),
    "value": Option(
        "each token is compared with a critic's prediction, not with siblings (PPO)",
        "GAE(γ = {gae_gamma}, λ = {gae_lambda}) of a critic, whitened over the step's tokens",
    ),
}

RATIO_LEVELS = {
    "token": Option("each token has its own ratio and is clipped alone", "w = p/p_old"),
    "sequence": Option(
        "all tokens of a completion share the geometric mean of their ratios "
        "and are clipped together",
        "w = (Π p/p_old)^(1/tokens)",
    ),
}

OBJECTIVES = {
    "clip": Option(
        "a token has no more effect once its probability moved by the clip range",
        "−min({w}·A, clip(w, {low}, {high})·A)",
    ),
    "cispo": Option(
        "every token counts by its advantage times its ratio; "
        "the ratio is capped and carries no gradient",
        "−sg(min(w, {cispo_cap}))·A·log p",
    ),
    "sapo": Option(
        "a token's effect fades smoothly as its ratio leaves 1, "
        "faster for tokens with a negative advantage",
        "−A·σ(τ·(w − 1))·4/τ; τ = {sapo_tau_pos} if A > 0 else {sapo_tau_neg}",
    ),
    "vespo": Option(
        "a completion counts less the more its probability has changed since sampling",
        "−sg(φ)·A·log p; φ = e^λ·W^k·e^(−λW), W = p/p_old of the completion; "
        "(k, λ) = ({vespo_k_pos}, {vespo_lambda_pos}) if A ≥ 0 "
        "else ({vespo_k_neg}, {vespo_lambda_neg})",
    ),
    "gmpo": Option(
        "a completion counts by the geometric mean of its clipped ratios, "
        "so a single unusual token has little effect",
        "−A·exp(mean over tokens of log w, clipped at ±{gmpo_eps})",
    ),
    "spo": Option(
        "a token has less effect the further its ratio has moved, and none at the edge of the clip "
        "range; beyond the edge it is pulled back",
        "−(w·A − |A|·(w − 1)²/(2ε)); ε = {clip_eps_high} if A > 0 else {clip_eps_low}",
    ),
    "reinforce": Option("every token counts by its advantage, without a limit", "−A·log p"),
    "trust_region": Option(
        "no step moves the policy by more than a set KL; "
        "this replaces clipping and the learning rate",
        "−w·A; KL(old ‖ new) ≤ {trust_region_delta}",
    ),
}

KL_ESTIMATORS = {
    "k1": Option(
        "unbiased as a measure, negative on half the tokens; "
        "as a loss its gradient averages to 0, so it does not hold the policy",
        "log p/ref",
    ),
    "k2": Option(
        "never negative, small variance, biased as a measure; "
        "as a loss it has the gradient of the true KL",
        "d²/2, d = log ref/p",
    ),
    "k3": Option(
        "never negative and unbiased; large where the reference gives a token far more probability",
        "e^d − d − 1, d = log ref/p",
    ),
    "exact": Option(
        "the whole sum over the vocabulary, without sampling noise; "
        "needs the memory of both distributions",
        "Σ p·log(p/ref) over the vocabulary",
    ),
}

KL_CONTROLS = {
    "fixed": Option("the coefficient does not change"),
    "adaptive": Option(
        "the coefficient rises while KL is above its target and falls while KL is below it; "
        "it stays fixed until KL first reaches the target. "
        "With group_std and a low target, start it near 0.8"
    ),
    "hard": Option(
        "no update is made while KL is above its target; "
        "instead the weights go a tenth of the way back to the reference"
    ),
}

AGGREGATIONS = {
    "sequence_mean": Option(
        "each completion weighs the same, so a token of a short completion weighs more",
        "mean over tokens, then over completions",
    ),
    "token_mean": Option("each token of the step weighs the same", "mean over the step's tokens"),
    "constant": Option(
        "each token weighs the same in every step, whatever the lengths",
        "sum over tokens / (completions · {max_new_tokens})",
    ),
}

ENGINES = {
    "own": Option("the model that is trained writes the completions itself"),
    "vllm": Option(
        "a vLLM server that you run writes them, from the weights or adapters that it is given "
        "before each step"
    ),
}

CORRECTIONS = {
    "none": Option("no correction; only measured, as sampler_kl"),
    "truncate": Option(
        "each token's policy term is multiplied by its ratio of probabilities, learner/server, "
        "of which what is above the limit is cut off",
        "× min(p_old/p_server, C)",
    ),
    "mask": Option(
        "the same, but a token whose ratio is above the limit trains nothing",
        "× p_old/p_server, 0 above C",
    ),
}
