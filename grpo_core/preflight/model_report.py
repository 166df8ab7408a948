"""What can be said about a model before it trains: its size, the memory that a run would take against what is free, how its turns end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from grpo_core.config import RunConfig
from grpo_core.models.device import describe_device, free_memory, pick_device
from grpo_core.models.load import _refuse, _source, check_model, precision, template_end
from grpo_core.training.memory_estimate import RESERVE, memory


@dataclass(frozen=True, slots=True)
class ModelReport:
    """Answers of "Check model". Bytes are estimates for this run's settings; `problems` stop a run, `remarks` only say something."""

    name: str
    architecture: str
    parameters: int
    trained_parameters: int
    dtype: str
    device: str
    context: int | None
    chat_template: bool
    end_tokens: dict[str, list[str]]  # where it is said -> the tokens
    ends_agree: bool
    bytes_by_part: dict[str, int]
    free_bytes: int
    fitting_micro_batch: int
    problems: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def needed_bytes(self) -> int:
        return sum(self.bytes_by_part.values())


def report(config: RunConfig) -> ModelReport:
    """Everything but the weights is read; those are counted on torch's meta device. Raises InvalidConfig on `model.name`."""
    m = config.model
    check_model(m)
    source, options = _source(m), {"trust_remote_code": False, "revision": m.revision}
    try:
        shape = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(shape)
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        _refuse(m, f"it cannot be looked at: {str(error).splitlines()[0][:200]}")
    device = pick_device()
    dtype = precision(m, device)
    parameters = sum(p.numel() for p in model.parameters())
    trained = _adapter_parameters(model, m.lora_rank) if m.lora_rank else parameters
    free = free_memory(device)
    twice = config.train.gradient_checkpointing == "on"
    parts, per_token = memory(config, shape, parameters, trained, dtype, twice)
    if config.train.gradient_checkpointing == "auto" and sum(parts.values()) > RESERVE * free:
        twice, (parts, per_token) = True, memory(config, shape, parameters, trained, dtype, True)
    room = RESERVE * free - sum(v for k, v in parts.items() if k != "activations")
    ends = end_tokens(source, options, tokenizer)
    agree = not ends["chat template"] or set(ends["chat template"]) <= set(
        ends["generation config"]
    ) | set(ends["tokenizer"])
    context = getattr(shape, "max_position_embeddings", None)
    problems, remarks = [], []
    if room < per_token * 64:
        problems.append(
            "There is not enough free memory for this run: use LoRA, a smaller model, or smaller groups."
        )
    if not any(ends.values()):
        problems.append("Nothing names an end token, so no completion would ever end.")
    if context is not None and config.train.max_new_tokens >= context:
        problems.append(
            f"train.max_new_tokens is {config.train.max_new_tokens:,}, and the context holds {context:,} tokens."
        )
    if twice:
        remarks.append(
            "Of each layer only its input is kept and the rest computed again for the gradient: "
            "about a third more time, several times fewer activations."
        )
    if not agree:
        remarks.append(
            "The chat template ends a turn with a token that the generation config does not name; both are respected here, but other programs may not stop."
        )
    if not tokenizer.chat_template:
        remarks.append("There is no chat template: prompts are read as bare text.")
    if dtype == torch.bfloat16 and not m.lora_rank:
        remarks.append("Weights in bfloat16 round small updates away; float32 or LoRA keep them.")
    return ModelReport(
        m.name,
        type(model).__name__,
        parameters,
        trained,
        str(dtype).removeprefix("torch."),
        describe_device(device),
        context,
        bool(tokenizer.chat_template),
        ends,
        agree,
        parts,
        free,
        max(0, int(room / per_token)),
        tuple(problems),
        tuple(remarks),
    )


def _adapter_parameters(model: torch.nn.Module, rank: int) -> int:
    head = model.get_output_embeddings()
    return sum(
        rank * sum(m.weight.shape)
        for m in model.modules()
        if m is not head and type(m).__name__ in ("Linear", "Conv1D")
    )


def end_tokens(source: str, options: dict[str, Any], tokenizer: Any) -> dict[str, list[str]]:
    """The tokens that end a turn, by who says so."""
    try:
        named = GenerationConfig.from_pretrained(source, revision=options["revision"]).eos_token_id
    except OSError:
        named = None
    ids = named if isinstance(named, list) else [] if named is None else [named]
    of_template = template_end(tokenizer)
    return {
        "generation config": [tokenizer.convert_ids_to_tokens(i) for i in ids],
        "tokenizer": [tokenizer.eos_token] if tokenizer.eos_token else [],
        "chat template": []
        if of_template is None
        else [tokenizer.convert_ids_to_tokens(of_template)],
    }
