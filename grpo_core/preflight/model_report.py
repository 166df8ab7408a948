"""What is known of a model before it trains: size, needed and free memory, end tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from grpo_core.config import ModelConfig, RunConfig
from grpo_core.config.devices import shares
from grpo_core.models.device import describe_device, free_memory, pick_device
from grpo_core.models.end_tokens import as_ids, named_by_source, template_end
from grpo_core.models.folder import BadModel
from grpo_core.models.load import examine, read_tokenizer, refuse
from grpo_core.models.lora import num_adapter_parameters
from grpo_core.models.precision import precision, why_precision
from grpo_core.models.shape import context_tokens
from grpo_core.models.source import Source
from grpo_core.training.memory_estimate import RESERVE, ModelSize, memory

MIN_MICRO_BATCH_TOKENS = 64  # a run that has less room does not fit
ENDS_DIFFER = (
    "The chat template ends a turn with a token that the generation config does not name. "
    "GRPO Studio stops at both; other programs may not stop."
)


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The result of "Check model". Bytes are estimates for one worker, with this run's settings.

    `problems` stop a run; `remarks` do not.
    """

    name: str
    architecture: str
    parameters: int
    trained_parameters: int
    dtype: str
    device: str
    context: int | None  # tokens
    chat_template: bool
    end_tokens: dict[str, list[str]]  # source -> its end tokens
    ends_agree: bool
    bytes_by_part: dict[str, int]
    free_bytes: int
    workers: int  # each needs those bytes of that room
    fitting_micro_batch: int  # tokens
    problems: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        return sum(self.bytes_by_part.values())


def report(config: RunConfig) -> ModelReport:
    """Report on the model without loading its weights: torch's meta device counts them.

    Raises InvalidConfig on `model.name`.
    """
    m = config.model
    device = pick_device(m.device)
    try:
        source, shape, model = examine(m)
        tokenizer = read_tokenizer(source, shape)
        ends = end_tokens(source, tokenizer)
    except BadModel as error:
        refuse(m, error.problem, error.hint)
    size = model_size(m, shape, model)
    workers = config.train.workers
    free = free_memory(device, another_process=True)
    if device.type == "cpu":
        free //= workers  # they share it
    recomputes = config.train.gradient_checkpointing == "on"
    parts, per_token = memory(config, size, recomputes)
    is_automatic = config.train.gradient_checkpointing == "auto"
    if is_automatic and sum(parts.values()) > RESERVE * free:
        recomputes = True
        parts, per_token = memory(config, size, recomputes)
    room = RESERVE * free - sum(v for k, v in parts.items() if k != "activations")

    known_ends = {*ends["generation config"], *ends["tokenizer"]}
    ends_agree = set(ends["chat template"]) <= known_ends
    context = context_tokens(shape)

    new_tokens = config.train.max_new_tokens
    problems = []
    if room < per_token * MIN_MICRO_BATCH_TOKENS:
        problems.append(
            "There is not enough free memory for this run: use LoRA, a smaller model, "
            "or smaller groups."
        )
    if not any(ends.values()):
        problems.append("The model has no end token, so no completion would ever end.")
    if context is not None and new_tokens >= context:
        problems.append(
            f"train.max_new_tokens is {new_tokens:,}, and the context holds {context:,} tokens."
        )
    remarks = [why_precision(m, device)]
    if shared := shares(config.train.prompts_per_step, workers):
        remarks.append(shared)
    if recomputes:
        remarks.append(
            "Each layer is computed twice to save memory: about a third more time, several times "
            "less memory for activations."
        )
    if not ends_agree:
        remarks.append(ENDS_DIFFER)
    if not tokenizer.chat_template:
        remarks.append("There is no chat template: the model reads prompts as bare text.")
    return ModelReport(
        name=m.name,
        architecture=type(model).__name__,
        parameters=size.parameters,
        trained_parameters=size.trained,
        dtype=str(size.dtype).removeprefix("torch."),
        device=describe_device(device),
        context=context,
        chat_template=bool(tokenizer.chat_template),
        end_tokens=ends,
        ends_agree=ends_agree,
        bytes_by_part=parts,
        free_bytes=free,
        workers=workers,
        fitting_micro_batch=max(0, int(room / per_token)),
        problems=tuple(problems),
        remarks=tuple(remarks),
    )


def model_size(config: ModelConfig, shape: PreTrainedConfig, model: PreTrainedModel) -> ModelSize:
    """Parameters and precision of an examined model, as this configuration would train it."""
    parameters = sum(p.numel() for p in model.parameters())
    trained = num_adapter_parameters(model, config.lora_rank) if config.lora_rank else parameters
    return ModelSize(shape, parameters, trained, precision(config, pick_device(config.device)))


def end_tokens(source: Source, tokenizer: Any) -> dict[str, list[str]]:
    """The tokens that end a turn, by the generation config, tokenizer and chat template."""
    by_model, by_tokenizer = named_by_source(source), as_ids(tokenizer.eos_token_id)
    by_template = as_ids(template_end(tokenizer, by_model | by_tokenizer))

    def tokens(ids: frozenset[int]) -> list[str]:
        return [str(tokenizer.convert_ids_to_tokens(i)) for i in sorted(ids)]

    return {
        "generation config": tokens(by_model),
        "tokenizer": tokens(by_tokenizer),
        "chat template": tokens(by_template),
    }
