"""Records shared by all modules: prompts, rollouts, groups, metrics, events. No dependencies."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
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
        """Whether a process works on the run. If that process is gone, the run was interrupted."""
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
    """A question and its right answer. `text` is the question before any chat template."""

    id: str
    text: str
    answer: str
    task: str
    meta: Mapping[str, Any] = field(default_factory=dict)

    @property
    def conversation(self) -> str:
        """`text`; in a chat all messages, each after its role. A system prompt alone is no chat."""
        before = self.meta.get("before", ())
        if all(message["role"] == "system" for message in before):
            return self.text
        turns = [*before, {"role": "user", "content": self.text}]
        return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def last_message(conversation: str, before: Sequence[Mapping[str, str]]) -> str:
    """A `Prompt.conversation` without the messages before the last one."""
    beginning = Prompt("", "", "", "", {"before": before}).conversation
    return conversation.removeprefix(beginning)


class TurnRole(StrEnum):
    """Who wrote a turn: the policy, or its environment."""

    ACTION = "action"
    OBSERVATION = "observation"


@dataclass(frozen=True, slots=True)
class Turn:
    """A part of a completion in an environment: what the policy wrote, or one tool's answer.

    first_token, num_tokens: its place among the completion's tokens. The answers to several calls
    of one action are rendered together: the first has all of their tokens. tool, arguments (as
    JSON, or as written if they do not parse), error, seconds: of the call that an observation
    answers; error "" if it succeeded.
    """

    role: TurnRole
    text: str
    first_token: int
    num_tokens: int
    tool: str = ""
    arguments: str = ""
    error: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """The text that the policy wrote. `num_tokens` counts its tokens, the end token included.

    text: begins with the tag of a block that the prompt opened, such as <think>; the policy wrote
    what follows. finish_reason: "stop" after an end token, "length" if it was cut.

    In an environment `text` holds the observations too, and num_tokens does not count them.
    said: what the policy wrote without its tool calls, which is what a rubric reads.
    has_tools: whether it had tools to call.
    environment_reward: what the environment's get_reward returned; environment_error: why nothing.
    """

    text: str
    finish_reason: str | None  # None: another trainer did not record it
    num_tokens: int | None  # None: the same
    turns: tuple[Turn, ...] = ()  # none without an environment
    said: str | None = None  # None: the text
    environment_reward: float | None = None
    environment_error: str = ""
    has_tools: bool = False

    @property
    def num_calls(self) -> int:
        """Tool calls, those that were answered with an error included."""
        return sum(turn.role == TurnRole.OBSERVATION for turn in self.turns)

    @property
    def graded(self) -> Completion:
        """What a rubric reads: no observation can make an answer right."""
        return self if self.said is None else replace(self, text=self.said)


@dataclass(frozen=True, slots=True)
class Rollout:
    """One completion of a prompt, from the sampler to the record.

    The sampler makes it with its token ids; scoring adds `scores` and `reward`, the comparison with
    its siblings adds `advantage`. None means not known yet, or, once scored, could not be scored.
    With a critic every token has its own advantage; `advantage` is then their mean.
    """

    completion: Completion
    scores: Mapping[str, float | None] = field(default_factory=dict)
    reward: float | None = None
    advantage: float | None = None
    edited: bool = False  # a person gave the reward
    prompt_ids: Sequence[int] = ()  # empty: the text was typed, not sampled
    completion_ids: Sequence[int] = ()  # the end token included
    sampling_logprobs: Sequence[float] | None = None  # nats, of each token as it was sampled
    # True for the tokens that the policy wrote; None: all of them.
    action_mask: Sequence[bool] | None = None


class GroupKind(StrEnum):
    """What a group was sampled for."""

    TRAINING = "training"
    EVALUATION = "evaluation"  # a held-out prompt after so many steps; nothing learns from it


@dataclass(frozen=True, slots=True)
class Group:
    """The siblings of one prompt at one step. `verdict` is one of rubric.verdict.VERDICTS.

    A group of an evaluation has no advantages, and the verdict "evaluation".
    """

    prompt: Prompt
    rollouts: tuple[Rollout, ...]
    reward_mean: float | None
    reward_std: float | None
    verdict: str


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """The n tokens of a rollout: int32 ids, float32 log-probabilities and entropy in nats.

    With U updates on the batch, `logprobs` and `entropy` have U·n values: first those of the policy
    before the first update. `logprobs_after` has n values, of the policy after the last update.
    None: not computed, because nothing needed it (a tied group, no KL).
    nan: an observation's token, which nothing is computed of.
    """

    token_ids: array[int]
    sampling_logprobs: array[float] | None = None  # when drawn
    logprobs: array[float] | None = None
    ref_logprobs: array[float] | None = None
    entropy: array[float] | None = None
    logprobs_after: array[float] | None = None


@dataclass(frozen=True, slots=True)
class StepTokens:
    """The token records of a step, and the text of the token ids that the run had not met before.

    records: (group, completion), both counted from 0 within the step -> its tokens.
    pieces: token id -> its bytes, which need not be whole characters.
    """

    records: Mapping[tuple[int, int], TokenRecord]
    pieces: Mapping[int, bytes]


def metric(title: str, unit: str, help: str, reading: str) -> Any:
    """A field of StepMetrics, with its texts for docs/metrics.md and the page. None: not finite."""
    return field(
        default=None, metadata={"title": title, "unit": unit, "help": help, "reading": reading}
    )


@dataclass(frozen=True, slots=True)
class StepMetrics:
    """The metrics of one optimiser step. Means are over scored rollouts; None: not measurable."""

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
        "A tied group has no gradient unless KL or an entropy bonus is in the loss. High at both "
        "ends of learning: all wrong, later all right.",
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
        "Each cost one more sampling, counted in tokens. Always 0 without dynamic sampling.",
    )
    loss: float | None = metric(
        "Loss",
        "1",
        "The minimised objective: policy term, plus kl_coef times KL, minus entropy_coef times "
        "entropy.",
        "Says little. On-policy it is minus the mean advantage, near 0 unless length and advantage "
        "go together. Watch reward and gradient norm.",
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
        "The entropy term of the loss: minus entropy_coef times the mean entropy of the tokens "
        "that carry the policy term.",
        "0 without an entropy bonus.",
    )
    value_loss: float | None = metric(
        "Value loss",
        "reward²",
        "Mean squared distance of the critic's values from the λ-returns, over trained tokens.",
        "Only with a critic. Falls as the critic learns to predict rewards; jumps when the policy "
        "changes faster than the critic.",
    )
    explained_variance: float | None = metric(
        "Critic, explained",
        "share",
        "1 - Var(reward - value)/Var(reward) over completion tokens, before the update.",
        "Only with a critic. 0: no better than a constant; 1: it predicts every reward; below 0: "
        "it misleads. Means little once nearly all rewards are equal.",
    )
    kl: float | None = metric(
        "KL to reference",
        "nats/token",
        "Mean over completion tokens of the chosen estimator of KL(policy, reference), before "
        "coefficient and ratio correction.",
        "Starts at 0; grows as the policy leaves its reference. A spike means the learning rate "
        "is too high.",
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
        "Mean entropy of the policy's next-token distribution on completion tokens. Where tied "
        "groups are skipped, only the computed groups count.",
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
        "Share of completion tokens whose ratio was clipped; objectives without a clip range "
        "have none.",
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
    sampler_kl: float | None = metric(
        "Sampler gap",
        "nats/token",
        "Mean of e^d - 1 - d over completion tokens; d: the learner's log-probability before the "
        "first update minus the sampler's. It estimates KL(sampler, learner).",
        "Rounding alone: below 1e-9 in float32, some 1e-3 in bfloat16. A jump: the rollout server "
        "has other weights. Empty where no log-probabilities are kept.",
    )
    sampler_ratio_max: float | None = metric(
        "Sampler gap, max",
        "1",
        "Largest ratio of probabilities e^d, learner/sampler, over completion tokens.",
        "Above rollout.correction_max a token is cut or left out, if there is a correction.",
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
        "Fewer than set: KL was above its hard limit, and the weights moved a step back towards "
        "the reference. The means above are over the passes made.",
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
        "Measured mean KL(policy before, policy after this step) over completion tokens, exact "
        "over the vocabulary.",
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
        "1 or 1/2 is usual. 0: no share was better and within delta, or all groups tie. The "
        "weights then stay as they were.",
    )
    trust_residual: float | None = metric(
        "Trust region, CG residual",
        "1",
        "What conjugate gradient left unsolved, |g - (F + 0.1 I)x| / |g|.",
        "Below 0.1 the direction is the natural gradient's; near 1 it is hardly better than the "
        "plain gradient.",
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
    turns_mean: float | None = metric(
        "Turns",
        "turns",
        "How often the policy wrote: the mean over completions in an environment.",
        "1: it never called a tool. At rollout.max_turns trajectories are cut.",
    )
    tool_calls_mean: float | None = metric(
        "Tool calls",
        "calls",
        "Mean number of tool calls of a completion in an environment.",
        "0 from the start: the policy does not know the tools, so it cannot learn to use them.",
    )
    tool_error_frac: float | None = metric(
        "Tool errors",
        "share",
        "Share of tool calls that were answered with an error.",
        "High: the policy writes calls that do not parse, or a tool fails or is too slow.",
    )
    observation_frac: float | None = metric(
        "Observations",
        "share",
        "Share of the completions' tokens that the environment wrote. They are not trained on.",
        "High: tools answer at length and leave little of max_new_tokens to the policy.",
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
        "Peak memory: on CUDA what the step allocated; else the process's resident memory so far.",
        "Near the limit: lower micro_batch_tokens or group size.",
    )


STEP_METRICS: tuple[str, ...] = tuple(f.name for f in fields(StepMetrics))


@dataclass(frozen=True, slots=True)
class Notice:
    """A diagnosis of the advisor.

    evidence: the measured values and the thresholds they passed, by name. group_id: an example.
    """

    code: str
    severity: str  # error, warning, info
    step: int
    message: str
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    group_id: int | None = None
    advice: str = ""


WAITING = "workers/waiting"  # code of the notice that a run waits for devices
LOST = "workers/lost"  # code of the notice that workers were lost, and from where others go on


# ---- events: everything that train() emits ---------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelLoaded:
    """The policy is in memory. `env`: versions, device, dtype, parameters; stored with the run.

    resolved: dotted name -> value of the settings that were left empty and depend on the model.
    """

    env: Mapping[str, Any]
    resolved: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PhaseStarted:
    """What the trainer does from now on, in step `step` (0 = before the first) of `num_steps`."""

    phase: Phase
    step: int
    num_steps: int


@dataclass(frozen=True, slots=True)
class GroupsScored:
    """The groups of a step with rewards and advantages, before the update that uses them."""

    step: int
    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class StepCompleted:
    """An optimiser step is done.

    extra: metrics of an open set, e.g. "score/accuracy". tokens: None if not to be recorded.
    """

    step: int
    metrics: StepMetrics
    extra: Mapping[str, float | None]
    tokens: StepTokens | None = None


@dataclass(frozen=True, slots=True)
class Evaluated:
    """Held-out results after `step` optimiser steps (0 = baseline), e.g. "heldout/accuracy"."""

    step: int
    metrics: Mapping[str, float | None]
    groups: tuple[Group, ...] = ()  # of the first held-out prompts, to look at


@dataclass(frozen=True, slots=True)
class Checkpointed:
    """The state after `step` steps is saved in the folder `path`. dropped: steps to delete.

    seconds: how long the saving took; None: not known.
    """

    step: int
    path: str
    num_bytes: int
    sha256: str
    dropped: tuple[int, ...] = ()
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Paused:
    """The run waits for a person. `reason`: what happened and what to do, in one line."""

    reason: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The run goes on where it waited."""


RESTART = "restart"  # kind of an Intervention: workers were lost, and others go on after its step


@dataclass(frozen=True, slots=True)
class Restarted:
    """The workers of a run were lost, and others go on after `step` (-1: from the beginning).

    What was recorded after that step is dropped: it comes again.
    """

    step: int
    reason: str


@dataclass(frozen=True, slots=True)
class Intervention:
    """What a person did to a running run.

    kind "setting": `field` (a dotted name) has `value` from `step` on. kind "reward": the
    completion at (`group`, `completion`), both counted from 0, has the reward `value` in `step`.
    Other kinds name the command: "pause", "resume", "step", "checkpoint", "stop"; or RESTART.
    """

    step: int
    kind: str
    value: float | None = None
    field: str | None = None
    group: int | None = None
    completion: int | None = None


@dataclass(frozen=True, slots=True)
class Intervened:
    """Settings or rewards that a person changed take effect in this step."""

    interventions: tuple[Intervention, ...]


@dataclass(frozen=True, slots=True)
class Noticed:
    """A notice about a step. The run's alerts keep the last one of each code.

    An empty message takes it back. A code with a slash, such as WAITING, is no diagnosis of the
    advisor: it stays until then.
    """

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
    | Restarted
    | Intervened
    | Noticed
)
