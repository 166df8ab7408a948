"""The five sections of a run's configuration: every field with its title, help, unit and bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from grpo_core.config import options


def knob(
    default: Any, title: str, help: str, *, unit: str = "", hint: str = "", **bounds: Any
) -> Any:
    """A field with what the form, `--help` and error messages need to know about it."""
    return Field(
        default,
        title=title,
        description=help,
        json_schema_extra={"unit": unit, "hint": hint},
        **bounds,
    )


def choice(default: str, title: str, help: str, table: Mapping[str, options.Option]) -> Any:
    """A field that is one of a table's keys; each key brings its own sentence."""
    return Field(
        default,
        title=title,
        description=help,
        json_schema_extra={
            "unit": "",
            "hint": "",
            "options": {name: option.help for name, option in table.items()},
        },
    )


FILE_INSTRUCTION = "Answer the question. You may think first inside <think></think>. Write only the final answer inside <answer></answer>."


class Section(BaseModel):
    # allow_inf_nan: a learning rate of nan passes every bound check otherwise.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelConfig(Section):
    name: str = knob(
        "bundled",
        "Model",
        "`bundled` (a tiny reasoner, no download), a local folder, or a Hub id such as Qwen/Qwen3-0.6B.",
        min_length=1,
        max_length=512,
        hint="Write bundled, a folder with config.json and *.safetensors, or owner/name.",
    )
    revision: str = knob(
        "main", "Revision", "Branch, tag or commit of a Hub model.", min_length=1, max_length=200
    )
    init: Literal["weights", "random"] = knob(
        "weights",
        "Initial weights",
        "`weights` loads what was trained; `random` keeps the configuration and starts from noise.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = knob(
        "auto",
        "Precision",
        "`auto`: bfloat16 on CUDA, float32 elsewhere. With small learning rates bfloat16 weights round small updates away.",
    )

    base_bits: Literal["16", "4"] = knob(
        "16",
        "Base weights",
        "`4` holds the frozen base of a LoRA run in 4 bits (NF4 by bitsandbytes, on CUDA): a quarter of the memory; the adapters stay float32.",
    )
    lora_rank: int = knob(
        0,
        "LoRA rank",
        "0 trains the whole model; more trains adapters of this rank beside its linear layers: a fraction of the memory, no second copy as reference.",
        ge=0,
        le=1024,
        hint="0, or 16 to start with.",
    )
    lora_alpha: float | None = knob(
        None,
        "LoRA alpha",
        "Adapters count alpha/rank times. Empty: twice the rank.",
        gt=0,
        le=4096,
        hint="Leave it empty.",
    )


class TaskConfig(Section):
    name: str = knob(
        "sums",
        "Task",
        "Where prompts come from, and how an answer is judged right.",
        min_length=1,
        max_length=64,
    )
    path: str = knob(
        "",
        "Prompts from",
        "A CSV, TSV, JSONL or Parquet file, or a dataset on the Hub such as openai/gsm8k.",
        max_length=1024,
        hint="Name a file that is there, or owner/name.",
    )
    subset: str = knob(
        "",
        "Subset",
        "Hub datasets: the configuration, such as main. Empty: the only one.",
        max_length=200,
    )
    split: str = knob(
        "train", "Split", "Hub datasets: the split to train on.", min_length=1, max_length=200
    )
    heldout_source: str = knob(
        "",
        "Held-out from",
        "Another file, or another split of the dataset, to evaluate on; what is in it leaves training. Empty: one prompt in ten.",
        max_length=1024,
    )
    prompt_column: str = knob(
        "",
        "Prompt column",
        "The column with the prompt, text or chat messages. Empty: guessed by its name.",
        max_length=200,
    )
    answer_column: str = knob(
        "",
        "Answer column",
        "The column with the right answer; with dots inside a column. Empty: guessed by its name.",
        max_length=200,
    )
    answers: Literal["recognised", "as they are"] = knob(
        "recognised",
        "Answers",
        "`recognised` takes the final answer out of worked solutions: after the last #### (GSM8K), in the last \\boxed (MATH).",
    )
    template: str = knob(
        "{prompt}",
        "Template",
        "What the model is asked: {prompt}, and any other {column}.",
        min_length=1,
        max_length=20_000,
    )
    instruction: str = knob(
        FILE_INSTRUCTION,
        "Instruction",
        "Written before each prompt for a chat model; a model without a chat template reads the bare prompt.",
        max_length=20_000,
    )
    system: str = knob(
        "", "System prompt", "First message of the chat. Empty: none.", max_length=20_000
    )
    max_rows: int = knob(
        1_000_000,
        "Rows at most",
        "No more rows than these are read.",
        unit="rows",
        ge=1,
        le=100_000_000,
    )
    too_long: Literal["refuse", "drop"] = knob(
        "refuse",
        "Too long prompts",
        "What to do when prompts leave no room for a completion in the model's context: `refuse` the run, or `drop` them; both say how many.",
    )
    heldout_size: int = knob(
        200,
        "Held-out prompts",
        "Prompts kept out of training and used to measure accuracy.",
        unit="prompts",
        ge=0,
        le=5000,
        hint="Use 200 or more for a narrow interval, 0 for no evaluation.",
    )
    second: str = knob(
        "",
        "Second task",
        "Evaluated beside the held-out prompts and never trained on: did the model forget it? A built-in task, a file or a Hub dataset. Empty: none.",
        max_length=1024,
        hint="Leave it empty, or write a built-in task such as sort, a file, or owner/name.",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_path_is_a_file(cls, data: Any) -> Any:
        """`--set task.path=…` alone is enough."""
        return (
            {**data, "name": "file"}
            if isinstance(data, Mapping) and data.get("path") and "name" not in data
            else data
        )


class Criterion(Section):
    """One line of a rubric: a check, its weight in the reward and its parameters."""

    name: str = Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9_.-]+$")
    check: str = Field(min_length=1, max_length=64)
    weight: float = Field(ge=0, le=1000)
    params: dict[str, Any] = Field(default_factory=dict)
    outcome: bool = False


class RubricConfig(Section):
    name: str = knob(
        "answer",
        "Rubric",
        "A preset, or `custom` for the criteria below.",
        min_length=1,
        max_length=64,
    )
    criteria: tuple[Criterion, ...] = knob(
        (),
        "Criteria",
        "name, check, weight, params, outcome. Empty: those of the preset.",
        max_length=32,
    )
    scale: bool = knob(
        False,
        "Scale rewards",
        "Divide rewards by the standard deviation of all rewards so far in the run.",
    )
    clip_low: float | None = knob(
        None,
        "Lowest reward",
        "Rewards below this count as this. Empty: no limit.",
        ge=-1e6,
        le=1e6,
        hint="Leave it empty.",
    )
    clip_high: float | None = knob(
        None,
        "Highest reward",
        "Rewards above this count as this. Empty: no limit.",
        ge=-1e6,
        le=1e6,
        hint="Leave it empty.",
    )
    gate: bool = knob(
        False,
        "Outcome gate",
        "Criteria other than the outcome count only in a group where somebody reached the outcome.",
    )


class AlgorithmConfig(Section):
    preset: str = knob("GRPO", "Preset", "A named set of the values below.", max_length=64)
    grouping: Literal[*options.GROUPINGS] = choice(
        "prompt", "Grouping", "Which completions are siblings.", options.GROUPINGS
    )
    similarity_threshold: float = knob(
        0.5,
        "Similarity",
        "Grouping `similarity`: prompts whose TF-IDF cosine is at least this are alike.",
        gt=0,
        le=1,
        hint="0.5 is a start; 1 means equal texts.",
    )
    advantage: Literal[*options.ADVANTAGES] = choice(
        "group_std",
        "Advantage",
        "How a completion is compared with its siblings.",
        options.ADVANTAGES,
    )
    gae_gamma: float = knob(
        1.0,
        "Discount γ",
        "Advantage `value`: how much less a reward counts for each token that it comes later.",
        gt=0,
        le=1,
        hint="1 is usual for text: the reward comes at the end.",
    )
    gae_lambda: float = knob(
        0.95,
        "GAE λ",
        "Advantage `value`: 1 trusts the reward that came, 0 the critic's next guess.",
        ge=0,
        le=1,
        hint="0.95 is usual.",
    )
    value_coef: float = knob(
        0.5,
        "Value coefficient",
        "Advantage `value`: weight of the critic's squared error in the loss.",
        ge=0,
        le=100,
        hint="0.5 is usual.",
    )
    objective: Literal[*options.OBJECTIVES] = choice(
        "clip", "Objective", "How an advantage becomes a push on tokens.", options.OBJECTIVES
    )
    trust_region_delta: float = knob(
        0.01,
        "Trust region",
        "`trust_region` only, in place of the learning rate: mean KL(old, new policy) that a step may reach.",
        unit="nats/token",
        gt=0,
        le=1,
        hint="0.01 is usual.",
    )
    trust_region_damping: float = knob(
        10.0,
        "Trust region, damping",
        "`trust_region` only: how strongly a step is kept out of directions about which the few completions "
        "of one batch say nothing.",
        gt=0,
        le=1e6,
        hint="10 is usual here; 0.1, usual where batches are large, lost again what it had learned.",
    )
    ratio_level: Literal[*options.RATIO_LEVELS] = choice(
        "token", "Ratio level", "What the ratio new/old is taken of.", options.RATIO_LEVELS
    )
    clip_eps_low: float = knob(
        0.2,
        "Clip range, low",
        "How far below 1 the ratio may fall before a bad token is left alone.",
        gt=0,
        lt=1,
        hint="0.2 is usual.",
    )
    clip_eps_high: float = knob(
        0.2,
        "Clip range, high",
        "How far above 1 the ratio may rise before a good token is left alone.",
        gt=0,
        le=10,
        hint="0.2 is usual, DAPO uses 0.28.",
    )
    clip_delta: float | None = knob(
        None,
        "Clip, second side",
        "Largest ratio with which a bad token is pushed down. Empty: no limit.",
        gt=1,
        le=1000,
        hint="Leave it empty, or try 4; it must lie above 1 + the high clip range.",
    )
    cispo_cap: float = knob(
        5.0,
        "CISPO cap",
        "`cispo`: largest ratio used as a weight.",
        gt=0,
        le=1000,
        hint="5 is usual.",
    )
    sapo_tau_pos: float = knob(
        1.0,
        "SAPO τ, good",
        "`sapo`: how fast the push on good tokens fades.",
        gt=0,
        le=100,
        hint="1 is usual.",
    )
    sapo_tau_neg: float = knob(
        1.05,
        "SAPO τ, bad",
        "`sapo`: how fast the push on bad tokens fades.",
        gt=0,
        le=100,
        hint="1.05 is usual.",
    )
    vespo_k_pos: float = knob(
        2.0,
        "VESPO k, good",
        "`vespo`: power of the sequence ratio for good completions.",
        ge=0,
        le=100,
        hint="2 is usual.",
    )
    vespo_lambda_pos: float = knob(
        3.0,
        "VESPO λ, good",
        "`vespo`: decay with the sequence ratio for good completions.",
        ge=1e-4,
        le=100,
        hint="3 is usual.",
    )
    vespo_k_neg: float = knob(
        3.0,
        "VESPO k, bad",
        "`vespo`: power of the sequence ratio for bad completions.",
        ge=0,
        le=100,
        hint="3 is usual.",
    )
    vespo_lambda_neg: float = knob(
        2.0,
        "VESPO λ, bad",
        "`vespo`: decay with the sequence ratio for bad completions.",
        ge=1e-4,
        le=100,
        hint="2 is usual.",
    )
    gmpo_eps: float = knob(
        0.4,
        "GMPO range",
        "`gmpo`: how far a token's log ratio counts in its completion's geometric mean.",
        gt=0,
        le=10,
        hint="0.4 is usual.",
    )
    kl_coef: float = knob(
        0.02,
        "KL coefficient",
        "How strongly the policy is held near its reference. 0: KL is measured, not trained on.",
        ge=0,
        le=100,
        hint="0.02 is usual, 0 switches it off.",
    )
    kl_estimator: Literal[*options.KL_ESTIMATORS] = choice(
        "k3", "KL estimator", "How KL is estimated.", options.KL_ESTIMATORS
    )
    measure_kl: bool = knob(
        True,
        "Measure KL",
        "Off, possible with a KL coefficient of 0: no reference is kept, a whole copy of the model less in memory, and the KL curve is empty.",
        hint="On is usual; off where memory is short.",
    )
    kl_ratio_corrected: bool = knob(
        False,
        "KL times ratio",
        "Multiply k3 by the ratio: trained on, it then has the gradient of the true KL, from the first update on. TRL does this by default.",
    )
    kl_control: Literal[*options.KL_CONTROLS] = choice(
        "fixed", "KL control", "What holds KL at its target.", options.KL_CONTROLS
    )
    kl_target: float = knob(
        0.05,
        "KL target",
        "Control `adaptive` and `hard`: KL to the reference to aim at, or not to exceed.",
        unit="nats/token",
        gt=0,
        le=100,
        hint="Look at the KL curve of a run with fixed control first.",
    )
    kl_horizon: int = knob(
        512,
        "KL horizon",
        "Control `adaptive`: the coefficient changes by at most 20 % in this many completions.",
        unit="completions",
        ge=1,
        le=100_000_000,
        hint="About the completions of 8 steps: KL takes some ten steps to answer.",
    )
    ref_every: int = knob(
        0,
        "Move reference every",
        "Steps between moves of the reference towards the policy; 0: it never moves.",
        unit="steps",
        ge=0,
        le=1_000_000,
        hint="0 is usual.",
    )
    ref_alpha: float = knob(
        0.6,
        "Move reference by",
        "Share of the policy in the moved reference: α·policy + (1 − α)·reference.",
        gt=0,
        le=1,
        hint="0.6 is usual; 1 copies the policy.",
    )
    aggregation: Literal[*options.AGGREGATIONS] = choice(
        "token_mean", "Aggregation", "What weighs the same.", options.AGGREGATIONS
    )
    mask_truncated: bool = knob(
        False,
        "Mask truncated",
        "Completions cut at the token limit train nothing, but still count in their group.",
    )
    entropy_quantile: float = knob(
        1.0,
        "Entropy share",
        "Share of tokens, those of highest entropy, that carry the policy term. 1: all. Below 1 costs a forward pass.",
        gt=0,
        le=1,
        hint="1 is usual, 0.2 in the paper.",
    )
    entropy_coef: float = knob(
        0.0,
        "Entropy bonus",
        "How strongly high entropy is rewarded; with an entropy target, where that starts.",
        ge=0,
        le=10,
        hint="0 is usual; try 0.001.",
    )
    entropy_target: float | None = knob(
        None,
        "Entropy target",
        "The bonus grows while entropy is below this and applies only there. Empty: the bonus is fixed.",
        unit="nats/token",
        ge=0,
        le=20,
        hint="Leave it empty, or try 0.2.",
    )
    entropy_coef_delta: float = knob(
        0.005,
        "Entropy bonus, change",
        "With an entropy target: how much the bonus grows or shrinks in each update.",
        gt=0,
        le=1,
        hint="0.005 is usual.",
    )
    entropy_coef_max: float = knob(
        1.0,
        "Entropy bonus, most",
        "With an entropy target: the bonus never exceeds this.",
        gt=0,
        le=10,
        hint="1 is usual.",
    )
    updates_per_batch: int = knob(
        1,
        "Updates per batch",
        "Optimiser steps on each batch of completions. From the second on the ratio leaves 1 and clipping matters.",
        unit="updates",
        ge=1,
        le=64,
        hint="1 is usual, 2 to 4 save sampling time.",
    )
    off_policy_threshold: float | None = knob(
        None,
        "Off-policy drop",
        "A completion with a negative advantage trains nothing once its tokens lost more than this on average since sampling. Empty: off.",
        unit="nats/token",
        gt=0,
        le=100,
        hint="Leave it empty, or try 0.1.",
    )
    dynamic_sampling: int = knob(
        0,
        "Dynamic sampling",
        "Rounds in which tied groups are replaced by freshly sampled prompts.",
        unit="rounds",
        ge=0,
        le=20,
        hint="0 switches it off; each round costs at most one more sampling.",
    )


class TrainConfig(Section):
    steps: int = knob(
        80,
        "Steps",
        "Optimiser steps.",
        unit="steps",
        ge=1,
        le=1_000_000,
        hint="Use 80 for the bundled model.",
    )
    prompts_per_step: int = knob(
        8,
        "Prompts per step",
        "Different prompts, and so groups, in each step.",
        unit="prompts",
        ge=1,
        le=4096,
    )
    group_size: int = knob(
        8,
        "Group size",
        "Completions of each prompt. A completion is compared with its siblings, so it needs at least one.",
        unit="completions",
        ge=2,
        le=1024,
        hint="Use 8; 2 is the least that can be compared.",
    )
    max_new_tokens: int = knob(
        48,
        "Max new tokens",
        "A completion is cut here.",
        unit="tokens",
        ge=1,
        le=32_768,
        hint="48 fits the built-in tasks.",
    )
    learning_rate: float | None = knob(
        None,
        "Learning rate",
        "Empty: by model size, 1e-4 below 50 M parameters, else 1e-6; ten times that for LoRA.",
        gt=0,
        le=1,
        hint="Leave it empty, or try 1e-4 for a tiny and 1e-6 for a large model.",
    )
    seed: int = knob(
        0, "Seed", "Same seed, same settings, same machine: the same run.", ge=0, le=2**31 - 1
    )
    temperature: float = knob(
        1.0,
        "Temperature",
        "Sampling temperature; log-probabilities use it too. No top-p or top-k.",
        gt=0,
        le=10,
        hint="1 is usual. 0 would make all siblings equal, so every group would tie.",
    )
    warmup_steps: int = knob(
        5,
        "Warm-up",
        "Steps over which the learning rate rises from 0.",
        unit="steps",
        ge=0,
        le=1_000_000,
    )
    max_grad_norm: float = knob(
        1.0, "Gradient clip", "The gradient is scaled down to this norm.", gt=0, le=1e6
    )
    micro_batch_tokens: int = knob(
        16_384,
        "Micro-batch",
        "Tokens a forward pass may hold; a CPU takes fewer by itself. Memory only: the result never depends on it.",
        unit="tokens",
        ge=1,
        le=100_000_000,
    )
    gradient_checkpointing: Literal["auto", "on", "off"] = knob(
        "auto",
        "Layers computed twice",
        "`on` keeps of each layer only its input and computes the rest again for the gradient: about a third more time, several times fewer activations. "
        "`auto`: when the estimate says that they would not fit. Memory only: the result never depends on it. A trust region's own passes keep everything.",
    )
    checkpoint_every: int = knob(
        20,
        "Checkpoint every",
        "Steps between saved states, from which a run resumes or branches; 0: none is saved.",
        unit="steps",
        ge=0,
        le=1_000_000,
        hint="20 loses little; 0 saves the space of a few copies of model and optimiser.",
    )
    checkpoint_keep: int = knob(
        2,
        "Keep the last",
        "Saved states that are kept beside the one of the best held-out accuracy.",
        unit="checkpoints",
        ge=1,
        le=1000,
    )
    checkpoint_keep_every: int = knob(
        0,
        "Keep every",
        "Saved states of every so many steps are kept for good; 0: none.",
        unit="steps",
        ge=0,
        le=1_000_000,
    )
    eval_every: int = knob(
        20,
        "Evaluate every",
        "Steps between held-out evaluations; 0: only before and after.",
        unit="steps",
        ge=0,
        le=1_000_000,
    )
    eval_samples: int = knob(
        1,
        "Tries per held-out prompt",
        "Completions of each held-out prompt. With more than one pass@k is measured too, for k = 2, 4, … up to this.",
        unit="completions",
        ge=1,
        le=256,
        hint="1 is usual; 8 shows pass@8 at eight times the cost.",
    )
    eval_mode: Literal["sampled", "greedy"] = knob(
        "sampled",
        "Held-out answers",
        "`sampled` at the training temperature, or `greedy`: always the likeliest token.",
    )
    token_records: int = knob(
        1,
        "Token records every",
        "Steps between records of every token's log-probabilities and entropy, at most 20 bytes a token; 0: none are kept.",
        unit="steps",
        ge=0,
        le=1_000_000,
        hint="1 keeps all, 0 none.",
    )


class Sections(Section):
    """The five sections together, without the rules that connect them; see schema.RunConfig."""

    model: ModelConfig = ModelConfig()
    task: TaskConfig = TaskConfig()
    rubric: RubricConfig = RubricConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    train: TrainConfig = TrainConfig()
