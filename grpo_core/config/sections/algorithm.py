"""Section `algorithm`: groups, advantage, objective, KL, entropy and reuse of a batch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from grpo_core.config import options
from grpo_core.config.sections.fields import Section, choice, setting

# A field allows exactly the keys of its table. Type checkers cannot read a Literal made from a
# table, so they see a plain string.
if TYPE_CHECKING:
    Grouping = Advantage = RatioLevel = Objective = str
    KLEstimator = KLControl = Aggregation = str
else:
    Grouping = Literal[*options.GROUPINGS]
    Advantage = Literal[*options.ADVANTAGES]
    Objective = Literal[*options.OBJECTIVES]
    RatioLevel = Literal[*options.RATIO_LEVELS]
    KLEstimator = Literal[*options.KL_ESTIMATORS]
    KLControl = Literal[*options.KL_CONTROLS]
    Aggregation = Literal[*options.AGGREGATIONS]


class AlgorithmConfig(Section):
    """How a group's rewards become an update of the policy."""

    preset: str = setting("GRPO", "Preset", "Fills the fields below.", max_length=64)
    grouping: Grouping = choice(
        "prompt", "Grouping", "Which completions are compared with each other.", options.GROUPINGS
    )
    similarity_threshold: float = setting(
        0.5,
        "Similarity",
        "Grouping `similarity`: prompts are similar if their TF-IDF cosine is at least this.",
        gt=0,
        le=1,
        hint="0.5 is a start; 1 means equal texts.",
    )
    advantage: Advantage = choice(
        "group_std",
        "Advantage",
        "How a completion is compared with its siblings.",
        options.ADVANTAGES,
    )
    gae_gamma: float = setting(
        1.0,
        "Discount γ",
        "Advantage `value`: a later reward counts less. It is multiplied by this once per token.",
        gt=0,
        le=1,
        hint="1 is usual for text, because the reward comes at the end.",
    )
    gae_lambda: float = setting(
        0.95,
        "GAE λ",
        "Advantage `value`: 1 relies on the reward alone, 0 on the critic's next prediction alone.",
        ge=0,
        le=1,
        hint="0.95 is usual.",
    )
    value_coef: float = setting(
        0.5,
        "Value coefficient",
        "Advantage `value`: weight of the critic's squared error in the loss.",
        ge=0,
        le=100,
        hint="0.5 is usual.",
    )
    objective: Objective = choice(
        "clip",
        "Objective",
        "How an advantage changes the probabilities of tokens.",
        options.OBJECTIVES,
    )
    trust_region_delta: float = setting(
        0.01,
        "Trust region",
        "Objective `trust_region`: the largest mean KL between the old and the new policy in one "
        "step. It replaces the learning rate.",
        unit="nats/token",
        gt=0,
        le=1,
        hint="0.01 is usual.",
    )
    trust_region_damping: float = setting(
        10.0,
        "Trust region, damping",
        "Objective `trust_region`: a higher value makes smaller steps in directions that the batch "
        "measures poorly.",
        gt=0,
        le=1e6,
        hint="10 is usual here. With 0.1, which suits large batches, small runs lost what they had "
        "learned.",
    )
    ratio_level: RatioLevel = choice(
        "token",
        "Ratio level",
        "Whether the ratio new/old is taken per token or per completion.",
        options.RATIO_LEVELS,
    )
    clip_eps_low: float = setting(
        0.2,
        "Clip range, low",
        "A token with a negative advantage has no more effect once its ratio falls below "
        "1 minus this.",
        gt=0,
        lt=1,
        hint="0.2 is usual.",
    )
    clip_eps_high: float = setting(
        0.2,
        "Clip range, high",
        "A token with a positive advantage has no more effect once its ratio rises above "
        "1 plus this.",
        gt=0,
        le=10,
        hint="0.2 is usual, DAPO uses 0.28.",
    )
    clip_delta: float | None = setting(
        None,
        "Clip, second side",
        "A token with a negative advantage has no more effect once its ratio rises above this. "
        "Empty: no limit.",
        gt=1,
        le=1000,
        hint="Leave it empty, or try 4. It must be more than 1 + the high clip range.",
    )
    cispo_cap: float = setting(
        5.0,
        "CISPO cap",
        "`cispo`: largest ratio used as a weight.",
        gt=0,
        le=1000,
        hint="5 is usual.",
    )
    sapo_tau_pos: float = setting(
        1.0,
        "SAPO τ, good",
        "`sapo`: how fast the effect of tokens with a positive advantage fades.",
        gt=0,
        le=100,
        hint="1 is usual.",
    )
    sapo_tau_neg: float = setting(
        1.05,
        "SAPO τ, bad",
        "`sapo`: how fast the effect of tokens with a negative advantage fades.",
        gt=0,
        le=100,
        hint="1.05 is usual.",
    )
    vespo_k_pos: float = setting(
        2.0,
        "VESPO k, good",
        "`vespo`: power of the sequence ratio for completions with a positive advantage.",
        ge=0,
        le=100,
        hint="2 is usual.",
    )
    vespo_lambda_pos: float = setting(
        3.0,
        "VESPO λ, good",
        "`vespo`: decay with the sequence ratio for completions with a positive advantage.",
        ge=1e-4,
        le=100,
        hint="3 is usual.",
    )
    vespo_k_neg: float = setting(
        3.0,
        "VESPO k, bad",
        "`vespo`: power of the sequence ratio for completions with a negative advantage.",
        ge=0,
        le=100,
        hint="3 is usual.",
    )
    vespo_lambda_neg: float = setting(
        2.0,
        "VESPO λ, bad",
        "`vespo`: decay with the sequence ratio for completions with a negative advantage.",
        ge=1e-4,
        le=100,
        hint="2 is usual.",
    )
    gmpo_eps: float = setting(
        0.4,
        "GMPO range",
        "`gmpo`: a token's log ratio is clipped to ± this "
        "before it enters the geometric mean of its completion.",
        gt=0,
        le=10,
        hint="0.4 is usual.",
    )
    kl_coef: float = setting(
        0.02,
        "KL coefficient",
        "Weight of the KL term, which holds the policy near its reference. "
        "0: KL is measured but not trained on.",
        ge=0,
        le=100,
        hint="0.02 is usual, 0 switches it off.",
    )
    kl_estimator: KLEstimator = choice(
        "k3", "KL estimator", "How KL is estimated.", options.KL_ESTIMATORS
    )
    measure_kl: bool = setting(
        True,
        "Measure KL",
        "Can be off if the KL coefficient is 0. Then no reference is kept, "
        "which saves the memory of a whole copy of the model, and the KL curve is empty.",
        hint="On is usual; off where memory is short.",
    )
    kl_ratio_corrected: bool = setting(
        False,
        "KL times ratio",
        "Multiply k3 by the ratio. The KL term then has the gradient of the true KL "
        "from the first update on. TRL does this by default.",
    )
    kl_control: KLControl = choice(
        "fixed", "KL control", "How KL is kept at its target.", options.KL_CONTROLS
    )
    kl_target: float = setting(
        0.05,
        "KL target",
        "KL to the reference: the value that control `adaptive` aims at, "
        "and the limit of control `hard`.",
        unit="nats/token",
        gt=0,
        le=100,
        hint="Look at the KL curve of a run with fixed control first.",
    )
    kl_horizon: int = setting(
        512,
        "KL horizon",
        "Control `adaptive`: the coefficient changes by at most 20 % in this many completions.",
        unit="completions",
        ge=1,
        le=100_000_000,
        hint="Use the number of completions in 8 steps. KL takes about ten steps to respond.",
    )
    ref_every: int = setting(
        0,
        "Move reference every",
        "Steps between moves of the reference towards the policy. 0: it never moves.",
        unit="steps",
        ge=0,
        le=1_000_000,
        hint="0 is usual.",
    )
    ref_alpha: float = setting(
        0.6,
        "Move reference by",
        "Share of the policy in the moved reference: α·policy + (1 − α)·reference.",
        gt=0,
        le=1,
        hint="0.6 is usual; 1 copies the policy.",
    )
    aggregation: Aggregation = choice(
        "token_mean",
        "Aggregation",
        "How tokens and completions are weighted in the loss.",
        options.AGGREGATIONS,
    )
    mask_truncated: bool = setting(
        False,
        "Mask truncated",
        "Completions cut at the token limit are not trained on. "
        "Their rewards still count in their group.",
    )
    entropy_quantile: float = setting(
        1.0,
        "Entropy share",
        "The policy term covers only this share of tokens, those of highest entropy. 1: all. "
        "Below 1 costs one more forward pass.",
        gt=0,
        le=1,
        hint="1 is usual, 0.2 in the paper.",
    )
    entropy_coef: float = setting(
        0.0,
        "Entropy bonus",
        "Weight of the bonus for high entropy. With an entropy target: its first value.",
        ge=0,
        le=10,
        hint="0 is usual; try 0.001.",
    )
    entropy_target: float | None = setting(
        None,
        "Entropy target",
        "The bonus applies, and grows, only while entropy is below this. "
        "Empty: the bonus is fixed.",
        unit="nats/token",
        ge=0,
        le=20,
        hint="Leave it empty, or try 0.2.",
    )
    entropy_coef_delta: float = setting(
        0.005,
        "Entropy bonus, change",
        "With an entropy target: how much the bonus grows or shrinks in each update.",
        gt=0,
        le=1,
        hint="0.005 is usual.",
    )
    entropy_coef_max: float = setting(
        1.0,
        "Entropy bonus, most",
        "With an entropy target: the largest bonus.",
        gt=0,
        le=10,
        hint="1 is usual.",
    )
    updates_per_batch: int = setting(
        1,
        "Updates per batch",
        "Optimiser steps on each batch of completions. "
        "From the second on, the ratio leaves 1 and clipping matters.",
        unit="updates",
        ge=1,
        le=64,
        hint="1 is usual, 2 to 4 save sampling time.",
    )
    off_policy_threshold: float | None = setting(
        None,
        "Off-policy drop",
        "Skip a completion with a negative advantage if its mean token log-probability has fallen "
        "by more than this since sampling. Empty: off.",
        unit="nats/token",
        gt=0,
        le=100,
        hint="Leave it empty, or try 0.1.",
    )
    dynamic_sampling: int = setting(
        0,
        "Dynamic sampling",
        "Rounds of sampling in which new prompts replace tied groups.",
        unit="rounds",
        ge=0,
        le=20,
        hint="0 switches it off; each round costs at most as much as sampling the step once.",
    )
