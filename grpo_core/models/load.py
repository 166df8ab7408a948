"""Load a Policy by name. Safetensors only; no code of the model's own; errors in one line."""

from __future__ import annotations

import copy
import importlib.util
import logging
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from grpo_core.config import ModelConfig
from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.models.device import free_memory, host_memory, pick_device, prepare_device
from grpo_core.models.end_tokens import end_ids, named_by_source
from grpo_core.models.folder import BadModel
from grpo_core.models.lora import add_adapters
from grpo_core.models.policy import Policy, Reader
from grpo_core.models.precision import precision
from grpo_core.models.shape import (
    check_memory,
    context_tokens,
    empty_model,
    read_shape,
)
from grpo_core.models.source import BUNDLED, NAME_HINT, Source, find_source, one_line
from grpo_core.models.token_ids import (
    check_begin,
    check_vocabulary,
    known_end_ids,
    known_pad_id,
)
from grpo_core.models.weights import check_complete, check_finite, check_types

__all__ = [
    "BUNDLED",
    "check_base",
    "check_model",
    "examine",
    "load_policy",
    "load_reader",
    "read_tokenizer",
    "refuse",
    "room_for_weights",
    "with_weights",
]

# transformers' progress bar over weights would overwrite the command line's own.
transformers_logging.disable_progress_bar()
# Its table of missing weights: `check_complete` says it in one line.
logging.getLogger("transformers.modeling_utils").addFilter(
    lambda record: "LOAD REPORT" not in record.getMessage()
)


def check_model(config: ModelConfig) -> None:
    """Check what needs no weights: name, folder, configuration, size, and that the device is there.

    Runs before a run is created. Raises InvalidConfig on `model.name`, `.device` or `.base_bits`.
    """
    try:
        examine(config)
    except BadModel as error:
        refuse(config, error.problem, error.hint)


def examine(config: ModelConfig) -> tuple[Source, PreTrainedConfig, PreTrainedModel]:
    """The model's source, its configuration, and the model without memory, after all their checks.

    Raises BadModel, or InvalidConfig on `model.device` or `model.base_bits`.
    """
    device = pick_device(config.device)
    source = find_source(config)
    shape = _language_shape(source, config, device)
    model = empty_model(shape)
    # All memory of the machine, not the free one: another run may end before this one starts.
    total, _ = host_memory()
    check_memory(model, precision(config, device), config.base_bits, total)
    return source, shape, model


def load_policy(config: ModelConfig, seed: int, device: torch.device | None = None) -> Policy:
    """Load model and tokenizer onto the device, with adapters if `lora_rank` is set.

    device: None for that of the configuration.

    init "random": the same architecture with fresh weights drawn from `seed`.
    Raises InvalidConfig on `model.name`.
    """
    try:
        return _load_policy(config, seed, device or pick_device(config.device))
    except BadModel as error:
        refuse(config, error.problem, error.hint)


def _load_policy(config: ModelConfig, seed: int, device: torch.device) -> Policy:
    source = find_source(config)
    dtype = precision(config, device)
    prepare_device(device)
    shape = _language_shape(source, config, device)
    check_memory(empty_model(shape), dtype, config.base_bits, room_for_weights(config, device))
    tokenizer = read_tokenizer(source, shape)
    if config.init == "random":
        model = _random_weights(shape, dtype, seed)
    else:
        more = _four_bits(device) if config.base_bits == "4" else {}
        model = with_weights(AutoModelForCausalLM, source, shape, dtype=dtype, **more)
    if config.lora_rank:
        try:
            add_adapters(model, config, seed)
        except ValueError as error:  # of peft, about architectures for which it has no adapters
            problem = f"{shape.model_type} can have no adapters: {one_line(error)}"
            hint = "Set it to 0, or name another model."
            problems = [FieldProblem("model.lora_rank", config.lora_rank, problem, hint)]
            raise InvalidConfig(problems) from None
    if config.base_bits == "16":
        # The type of transformers' decorated `to` takes the device for self.
        model.to(device)  # pyright: ignore[reportArgumentType]
    # Dropout would make the policy differ from itself, and KL at step 0 differ from 0.
    model.eval()
    check_begin(model, tokenizer)
    end_ids = known_end_ids(model, tokenizer)
    pad_id = known_pad_id(model, tokenizer)
    if pad_id is None:  # padding is masked, so any id does
        pad_id = min(end_ids)
    return Policy(model, tokenizer, end_ids, pad_id, context_tokens(model.config))


def _language_shape(source: Source, config: ModelConfig, device: torch.device) -> PreTrainedConfig:
    """The configuration of a decoder-only model. Raises BadModel, or InvalidConfig on base_bits."""
    shape = read_shape(source, precision(config, device))
    check_base(config, device)
    if getattr(shape, "is_encoder_decoder", False):
        raise BadModel(
            f"{shape.model_type} is an encoder-decoder; "
            "GRPO here needs a decoder-only language model",
            NAME_HINT,
        )
    return shape


def room_for_weights(config: ModelConfig, device: torch.device) -> int:
    """Bytes that weights may take now. In 16 bits they pass through the machine's own memory."""
    _, in_host = host_memory(drops_caches=True)
    if device.type == "cpu":
        return in_host
    in_device = free_memory(device)
    return in_device if config.base_bits == "4" else min(in_device, in_host)


def read_tokenizer(source: Source, shape: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The source's tokenizer. Raises BadModel."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.name, config=shape, **source.options)
        if not isinstance(tokenizer, PreTrainedTokenizerBase):
            raise TypeError(f"{type(tokenizer).__name__} is a pair of tokenizers")
        tokenizer("a")  # some settings are used only here
    # Tokenizers are read by code of many kinds, so any error may come. A panic of the Rust library
    # is no Exception.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise BadModel(f"its tokenizer cannot be loaded: {one_line(error)}") from None
    check_vocabulary(tokenizer, source.folder)
    return tokenizer


def with_weights(
    kind: Any,
    source: Source,
    shape: PreTrainedConfig,
    check: Callable[[PreTrainedModel, Mapping[str, Any]], None] = check_complete,
    **options: Any,
) -> PreTrainedModel:
    """The model with all of its weights. Raises BadModel naming those that are missing or bad.

    check: gets the model and transformers' report of what was missing.
    """
    try:
        model, loaded = kind.from_pretrained(
            source.name,
            config=shape,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # `check` names them
            **source.options,
            **options,
        )
    except Exception as error:
        raise BadModel(f"it cannot be loaded: {one_line(error)}", NAME_HINT) from None
    check(model, loaded)
    check_types(model, source.folder)
    check_finite(model)
    return model


def check_base(config: ModelConfig, device: torch.device) -> None:
    """Raise InvalidConfig on `model.base_bits` if the base cannot be held in 4 bits as set."""
    if config.base_bits == "16":
        return
    if not config.lora_rank:
        problem = "it needs LoRA: 4-bit weights cannot be trained themselves"
        hint = "Set model.lora_rank to 16, or base_bits to 16."
    elif device.type != "cuda":
        problem = f"it needs CUDA, and this machine trains on {device.type}"
        hint = "Set it to 16, or train on a machine with an NVIDIA GPU."
    elif not importlib.util.find_spec("bitsandbytes"):
        problem = "it needs the package bitsandbytes"
        hint = "Install it: pip install bitsandbytes. Or set it to 16."
    elif config.init == "random":
        problem, hint = "it saves nothing with random weights", "Set it to 16."
    else:
        return
    raise InvalidConfig([FieldProblem("model.base_bits", config.base_bits, problem, hint)])


def _four_bits(device: torch.device) -> dict[str, Any]:
    """Loading options of QLoRA's base (arXiv:2305.14314): NF4, double quantisation, bfloat16.

    Puts the model on its device, because a quantised model cannot be moved after loading.
    """
    from transformers import BitsAndBytesConfig

    return {
        "device_map": {"": device},
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        ),
    }


def load_reader(config: ModelConfig) -> Reader:
    """Load tokenizer and context length without weights: enough to show and count prompts.

    Raises InvalidConfig on `model.name`.
    """
    try:
        source = find_source(config)
        shape = read_shape(source)
        tokenizer = read_tokenizer(source, shape)
        ends = end_ids(named_by_source(source), tokenizer)
        return Reader(tokenizer, context_tokens(shape), ends)
    except BadModel as error:
        refuse(config, error.problem, error.hint)


def _random_weights(shape: PreTrainedConfig, dtype: torch.dtype, seed: int) -> PreTrainedModel:
    # Initialisation takes no generator, so fork the global one to leave its state unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(copy.deepcopy(shape), dtype=dtype)


def refuse(config: ModelConfig, problem: str, hint: str = NAME_HINT) -> NoReturn:
    """Raise InvalidConfig on `model.name`."""
    raise InvalidConfig([FieldProblem("model.name", config.name, problem, hint)]) from None
