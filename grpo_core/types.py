"""The records that travel between modules: prompts, completions, groups, metrics, events. Standard library only."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import Any


class RunStatus(StrEnum):
    QUEUED = "queued"
    LOADING = "loading"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def is_live(self) -> bool:
        """Whether somebody must be working on the run: if its process is gone, it was interrupted."""
        return self in (RunStatus.QUEUED, RunStatus.LOADING, RunStatus.RUNNING, RunStatus.PAUSED)


class Phase(StrEnum):
    LOADING = "loading"
    SAMPLING = "sampling"
    SCORING = "scoring"
    UPDATING = "updating"
    EVALUATING = "evaluating"
    SAVING = "saving"


TIE_TOLERANCE = 1e-8  # rewards closer than this are equal


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question with the answer that graders compare with. `text` is what the model reads, before any chat template."""

    id: str
    text: str
    answer: str
    task: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Completion:
    """What the policy wrote. `num_tokens` counts the end token; `finish_reason` is "stop" or "length"."""

    text: str
    finish_reason: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Rollout:
    """A scored completion. A score or reward of None could not be scored; its advantage is 0.

    With a critic every token has its own advantage; the one here is their mean over the completion.
    """

    completion: Completion
    scores: Mapping[str, float | None]
    reward: float | None
    advantage: float
    edited: bool = False  # a person gave the reward


@dataclass(frozen=True, slots=True)
class Group:
    """The G siblings of one prompt at one step. `verdict` is one of rubric.verdict.VERDICTS."""

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    reward_mean: float | None
    reward_std: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """The n tokens of a rollout as numbers: arrays "i" (int32) and "f" (float32), log-probabilities and entropy in nats.

    With U updates on the batch `logprobs` and `entropy` hold U·n values, those of the policy before the first update first, and so on.
    None: not computed, because nothing needed it (a tied group, no KL).
    """

    token_ids: array[int]
    sampling_logprobs: array[float] | None = None  # when drawn
    logprobs: array[float] | None = None
    ref_logprobs: array[float] | None = None
    entropy: array[float] | None = None


@dataclass(frozen=True, slots=True)
class StepTokens:
    """The token records of a step, one a rollout in the order of its groups, and what the ids that the run had not met before say.

    pieces: id -> the token's own bytes, which need not be whole characters.
    """

    records: tuple[TokenRecord, ...]
    pieces: Mapping[int, bytes]


def metric(title: str, unit: str, help: str, reading: str) -> Any:
    """A field of StepMetrics with what docs/metrics.md and the page say about it. Missing or not finite is None."""
    return field(
        default=None, metadata={"title": title, "unit": unit, "help": help, "reading": reading}
    )


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """Everything recorded about one optimiser step. Means over rows are over scored rows; None = not measurable."""

    reward_mean: float | None = metric(
        "Reward",
        "reward",
        "Mean total reward of the step's scored completions.",
        "The one curve to watch. It jumps with the prompts drawn; trust the trend.",
    )
    reward_std: float | None = metric(
        "Reward spread",
        "reward",
        "Sample standard deviation over all scored rows of the step.",
        "Over the whole step, not within groups. At 0 nothing can be learned.",
    )
    advantage_std: float | None = metric(
        "Advantage spread",
        "1",
        "Standard deviation of the advantages over all rows.",
        "Just under 1 when most groups are informative; falls as groups tie.",
    )
    tied_group_frac: float | None = metric(
        "Tied groups",
        "share",
        "Share of groups in which all rewards are equal.",
        "A tied group has no gradient. High at both ends of learning: all wrong, later all right.",
    )
    tied_best_frac: float | None = metric(
        "Tied, all right",
        "share",
        "Share of groups that are tied with every completion right.",
        "Prompts that the policy has solved.",
    )
    tied_worst_frac: float | None = metric(
        "Tied, all wrong",
        "share",
        "Share of groups that are tied with every completion wrong.",
        "Prompts that are too hard for now.",
    )
    tied_middle_frac: float | None = metric(
        "Tied, between",
        "share",
        "Share of groups that are tied with neither all right nor all wrong.",
        "The rubric cannot tell these completions apart.",
    )
    replaced_groups: int | None = metric(
        "Replaced groups",
        "groups",
        "Tied groups that dynamic sampling replaced by fresh prompts.",
        "Each cost a sampling that trains nothing; it is counted in tokens. Always 0 without dynamic sampling.",
    )
    loss: float | None = metric(
        "Loss",
        "1",
        "The minimised objective: policy term, plus kl_coef times KL, minus entropy_coef times entropy.",
        "Says little: on-policy it is minus the mean advantage, near 0 unless length and advantage go together. Watch reward and gradient norm.",
    )
    policy_loss: float | None = metric(
        "Policy loss",
        "1",
        "The policy term alone.",
        "Its value says little, its gradient everything.",
    )
    kl_loss: float | None = metric(
        "KL loss",
        "1",
        "The KL term of the loss: kl_coef times KL, corrected and aggregated as chosen.",
        "Beside the policy term it says how hard the reference pulls.",
    )
    entropy_loss: float | None = metric(
        "Entropy loss",
        "1",
        "The entropy term of the loss: minus entropy_coef times the mean entropy of the tokens that carry it.",
        "0 without an entropy bonus.",
    )
    value_loss: float | None = metric(
        "Value loss",
        "reward²",
        "Mean squared distance of the critic's values from the λ-returns, over trained tokens.",
        "Only with a critic. Falls as it learns to foresee rewards; jumps when the policy changes faster than it can follow.",
    )
    explained_variance: float | None = metric(
        "Critic, explained",
        "share",
        "1 - Var(reward - value)/Var(reward) over completion tokens, before the update.",
        "Only with a critic. 0: no better than a constant; 1: it foresees every reward; below 0: it misleads. Means little once nearly all rewards are equal.",
    )
    kl: float | None = metric(
        "KL to reference",
        "nats/token",
        "Mean over completion tokens of the chosen estimator of KL(policy, reference), before coefficient and ratio correction.",
        "0 at step 0; grows as the policy leaves its reference. A burst means too large steps.",
    )
    kl_coef: float | None = metric(
        "KL coefficient",
        "1",
        "Weight of the KL term in this step's loss.",
        "0: KL is measured on an eighth of the completions and not trained on.",
    )
    entropy: float | None = metric(
        "Entropy",
        "nats/token",
        "Mean entropy of the policy's next-token distribution on completion tokens; of the groups that were computed, where tied ones are skipped.",
        "Falls as the policy commits. Near 0 all siblings look alike and groups tie.",
    )
    entropy_coef: float | None = metric(
        "Entropy bonus",
        "1",
        "Weight of the entropy bonus in this step's loss.",
        "With an entropy target it is 0 while entropy is above it.",
    )
    ratio_mean: float | None = metric(
        "Ratio, mean",
        "1",
        "Mean of the importance ratio new/old over completion tokens.",
        "Exactly 1 in the first update of a batch.",
    )
    ratio_max: float | None = metric(
        "Ratio, max",
        "1",
        "Largest importance ratio over completion tokens.",
        "Exactly 1 in the first update of a batch.",
    )
    clip_frac: float | None = metric(
        "Clipped",
        "share",
        "Share of completion tokens whose ratio was clipped; objectives without a clip range have none.",
        "0 with one update per batch: that is normal.",
    )
    clip_low_frac: float | None = metric(
        "Clipped low",
        "share",
        "Share with A < 0 and a ratio below the objective's clip range (clip: 1 - clip_eps_low).",
        "Tokens already pushed down enough.",
    )
    clip_high_frac: float | None = metric(
        "Clipped high",
        "share",
        "Share with A > 0 and a ratio above the objective's clip range (clip: 1 + clip_eps_high).",
        "Tokens already pushed up enough.",
    )
    off_policy_frac: float | None = metric(
        "Off-policy dropped",
        "share",
        "Share of completions that train nothing because they drifted too far.",
        "Always 0 without an off-policy threshold.",
    )
    micro_batch_tokens: int | None = metric(
        "Micro-batch",
        "tokens",
        "The most tokens that a forward pass of the update might hold.",
        "train.micro_batch_tokens; halves whenever memory ran out.",
    )
    num_updates: int | None = metric(
        "Updates",
        "updates",
        "Optimiser steps made on the step's batch.",
        "Fewer than asked for: KL stood above its hard limit, and the weights went a step back. The means above are over the passes made.",
    )
    grad_norm: float | None = metric(
        "Gradient norm",
        "1",
        "Global L2 norm of the gradient before clipping.",
        "0 when all groups tie. Repeated spikes: lower the learning rate.",
    )
    learning_rate: float | None = metric(
        "Learning rate",
        "1",
        "Learning rate of this step, after warm-up.",
        "Rises over the warm-up steps, then constant. Empty with a trust region, which has none.",
    )
    trust_kl: float | None = metric(
        "Trust region, KL",
        "nats/token",
        "Measured mean KL(policy before, policy after this step) over completion tokens, exact over the vocabulary.",
        "Just under delta. Far under: many halvings.",
    )
    trust_delta: float | None = metric(
        "Trust region, delta",
        "nats/token",
        "The KL that this step was allowed.",
        "algorithm.trust_region_delta.",
    )
    trust_step_frac: float | None = metric(
        "Trust region, step",
        "share",
        "Accepted share of the step that conjugate gradient proposed: 1, 1/2, 1/4 ...",
        "1 or 1/2 is usual. 0: no share was both better and within delta, or all groups tie; the weights were left as they are.",
    )
    trust_residual: float | None = metric(
        "Trust region, CG residual",
        "1",
        "What conjugate gradient left unsolved, |g - (F + 0.1 I)x| / |g|.",
        "Below 0.1 the direction is the natural gradient's; near 1 it is hardly better than the plain gradient.",
    )
    trust_gain: float | None = metric(
        "Trust region, gain",
        "1",
        "By how much the surrogate, mean ratio times advantage, rose in this step.",
        "Above 0 in every accepted step.",
    )
    completion_tokens_mean: float | None = metric(
        "Completion length",
        "tokens",
        "Mean number of completion tokens, end token counted.",
        "Rises when thinking pays; rises without reward when length is being gamed.",
    )
    completion_tokens_max: float | None = metric(
        "Longest completion",
        "tokens",
        "Largest number of completion tokens.",
        "At max_new_tokens some completions were cut.",
    )
    truncated_frac: float | None = metric(
        "Truncated",
        "share",
        "Share of completions that hit max_new_tokens before ending.",
        "Above 0.3: raise max_new_tokens, or the reward never sees the answer.",
    )
    unique_frac: float | None = metric(
        "Unique completions",
        "share",
        "Distinct texts among the siblings, over group size, mean over groups.",
        "Towards 1/G siblings are copies and groups tie.",
    )
    unscored_frac: float | None = metric(
        "Unscored",
        "share",
        "Share of completions whose reward is null.",
        "Not 0: look at which criterion fails.",
    )
    tokens: int | None = metric(
        "Tokens",
        "tokens",
        "Completion tokens sampled in this step.",
        "The compute axis when comparing runs.",
    )
    sampling_seconds: float | None = metric(
        "Sampling time", "s", "Seconds spent sampling completions.", "Usually the largest part."
    )
    scoring_seconds: float | None = metric(
        "Scoring time", "s", "Seconds spent in the rubric.", "Large: a slow criterion."
    )
    update_seconds: float | None = metric(
        "Update time",
        "s",
        "Seconds for reference, forward, backward and optimiser.",
        "Grows with completion length.",
    )
    evaluation_seconds: float | None = metric(
        "Evaluation time",
        "s",
        "Seconds of the held-out evaluation before this step.",
        "0 where none was due.",
    )
    writing_seconds: float | None = metric(
        "Writing time",
        "s",
        "Seconds in which training waited for its record to be written, since the step before.",
        "More than a few percent of a step: the disk is slow; token_records is the largest part.",
    )
    step_seconds: float | None = metric(
        "Step time",
        "s",
        "Seconds for the whole step, without evaluation and without waiting for a person.",
        "Steps left times this is the time left.",
    )
    peak_memory_mib: float | None = metric(
        "Peak memory",
        "MiB",
        "Peak memory: of the device on CUDA, else resident memory of the process.",
        "Near the limit: lower micro_batch_tokens or group size.",
    )


STEP_METRICS: tuple[str, ...] = tuple(f.name for f in fields(StepMetrics))


@dataclass(frozen=True, slots=True)
class Notice:
    """A diagnosis of the advisor. `evidence`: what was measured and the threshold it passed, by name; `group_id`: a group that shows it."""

    code: str
    severity: str  # error, warning, info
    step: int
    message: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    group_id: int | None = None
    advice: str = ""


# ---- events: all that train() says, in the order in which it happens -------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """The policy is in memory. `env`: versions, device, dtype, parameters; stored whole with the run."""

    env: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """What the trainer does from now on, in step `step` (0 = before the first) of `num_steps`."""

    phase: Phase
    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class GroupsScored:
    """The groups of a step, complete with rewards and advantages, before the update that uses them."""

    step: int
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class StepCompleted:
    """An optimiser step is done. `extra`: named numbers of an open set, e.g. "score/accuracy". `tokens`: None where not asked for."""

    step: int
    metrics: StepMetrics
    extra: Mapping[str, float | None]
    tokens: StepTokens | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Held-out results after `step` optimiser steps (0 = baseline), e.g. "heldout/accuracy"."""

    step: int
    metrics: Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The state after `step` steps is on the disk, whole, in the folder `path`. `dropped`: older ones that need not be kept any more."""

    step: int
    path: str
    num_bytes: int
    sha256: str
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Paused:
    """Nothing moves until a person says so. `reason`: what happened and what can be done, in one line."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run goes on where it waited."""


@dataclass(frozen=True, slots=True)
class Edited:
    """What a person changed, in force from `step` on: "knob/FIELD" for a setting, "edit/GROUP/COMPLETION" for a reward of this step."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Noticed:
    """Something that a person should know about a step, as it happened; kept with the run's alerts, the last of each code."""

    step: int
    code: str
    severity: str  # "info", "warning" or "error"
    message: str


Event = (
    ModelLoaded
    | PhaseStarted
    | GroupsScored
    | StepCompleted
    | Evaluated
    | Checkpointed
    | Paused
    | Resumed
    | Edited
    | Noticed
)
