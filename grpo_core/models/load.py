"""Load a Policy by name. Safetensors only; no code of the model's own; errors in one line."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub.errors as hub
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from grpo_core.config import ModelConfig
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.hub_probe import cached_snapshot, model_unreachable
from grpo_core.models.device import pick_device
from grpo_core.models.end_tokens import find_end_ids
from grpo_core.models.lora import add_adapters
from grpo_core.models.policy import Policy, Reader

try:
    import httpx2 as web  # the HTTP client of huggingface_hub since 2.x
except ImportError:
    import httpx as web  # and before

# transformers' progress bar over weights would overwrite the command line's own.
transformers_logging.disable_progress_bar()

BUNDLED = Path(__file__).parent / "bundled"
_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_HINT = (
    "Write bundled, a folder with config.json, a tokenizer and *.safetensors, "
    "or a Hub id such as Qwen/Qwen3-0.6B."
)
_TOKEN = "a token with access in the environment variable HF_TOKEN; the token is never stored"
# The first match counts: some errors are subclasses of later ones.
_HUB_ERRORS: tuple[tuple[type[BaseException], str], ...] = (
    (
        hub.GatedRepoError,
        f"the Hub gives it only to people who accepted its terms; it needs {_TOKEN}",
    ),
    (hub.RevisionNotFoundError, "the Hub has no such revision of this model"),
    (
        hub.RepositoryNotFoundError,
        f"the Hub has no such model, or a private one that needs {_TOKEN}",
    ),
    (
        hub.OfflineModeIsEnabled,
        "it is not on this machine, and HF_HUB_OFFLINE forbids a connection to the Hub",
    ),
    (
        hub.LocalEntryNotFoundError,
        "it is not on this machine, and the Hub could not be reached or the download is incomplete",
    ),
    (web.TransportError, "the Hub could not be reached or the download is incomplete"),
)
_TOKENIZER_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError)
_WEIGHT_ERRORS = (*_TOKENIZER_ERRORS, SafetensorError)


def check_model(config: ModelConfig) -> None:
    """Check what needs no weights: name, folder, configuration. Runs before a run is created.

    Raises InvalidConfig on `model.name` or `model.base_bits`.
    """
    source = resolve_source(config)
    model_config = _load_model_config(source, config)
    check_base(config, pick_device())
    if getattr(model_config, "is_encoder_decoder", False):
        refuse(
            config,
            f"{model_config.model_type} is an encoder-decoder; "
            "GRPO here needs a decoder-only language model",
        )


def load_policy(config: ModelConfig, seed: int, device: torch.device | None = None) -> Policy:
    """Load model and tokenizer onto the device, with adapters if `lora_rank` is set.

    init "random": the same architecture with fresh weights drawn from `seed`.
    Raises InvalidConfig on `model.name`.
    """
    check_model(config)
    device = device or pick_device()
    source = resolve_source(config)
    options: dict[str, Any] = {"trust_remote_code": False, "revision": config.revision}
    dtype = precision(config, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if config.init == "random":
            model = _random_weights(source, options, dtype, seed)
        else:
            if config.base_bits == "4":
                options |= _four_bits(device)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, **options
            )
    except (*_WEIGHT_ERRORS, web.HTTPError) as error:
        refuse(config, f"it cannot be loaded: {_one_line(error)}")
    if config.lora_rank:
        add_adapters(model, config, seed)
    if config.base_bits == "16":
        # The type of transformers' decorated `to` takes the device for self.
        model.to(device)  # pyright: ignore[reportArgumentType]
    # Dropout would make the policy differ from itself, and KL at step 0 differ from 0.
    model.eval()
    end_ids = find_end_ids(model, tokenizer)
    if not end_ids:
        refuse(
            config,
            "neither its generation config nor its tokenizer names an end token, "
            "so no completion would ever end",
        )
    pad_id = tokenizer.pad_token_id
    return Policy(
        model,
        tokenizer,
        end_ids,
        pad_id if pad_id is not None else min(end_ids),
        getattr(model.config, "max_position_embeddings", None),
    )


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
    source = resolve_source(config)
    context = getattr(_load_model_config(source, config), "max_position_embeddings", None)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, revision=config.revision
        )
    except _TOKENIZER_ERRORS as error:
        refuse(config, f"its tokenizer cannot be loaded: {_one_line(error)}")
    return Reader(tokenizer, context)


def load_classifier(
    name: str, revision: str = "main"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a sequence-classification model and its tokenizer onto the device.

    The rules of a policy apply: safetensors only, no code of the model's own.
    Raises StudioError, or InvalidConfig on `model.name`.
    """
    config = ModelConfig(name=name or " ", revision=revision)
    source, device = resolve_source(config), pick_device()
    _load_model_config(source, config)
    options: dict[str, Any] = {"trust_remote_code": False, "revision": revision}
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForSequenceClassification.from_pretrained(
            source, dtype=precision(config, device), use_safetensors=True, **options
        )
    except _WEIGHT_ERRORS as error:
        raise StudioError(
            f"the reward model {name!r} cannot be loaded: {_one_line(error)}. "
            "Name a sequence-classification model."
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    # The model judges the end of the completion, so a text that is too long loses its beginning.
    tokenizer.truncation_side = "left"
    return model.to(device).eval(), tokenizer


def precision(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The dtype of the weights; "auto" is bfloat16 on CUDA and float32 elsewhere."""
    automatic = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, automatic if config.dtype == "auto" else config.dtype)


def _random_weights(
    source: str, options: dict[str, Any], dtype: torch.dtype, seed: int
) -> PreTrainedModel:
    # Initialisation takes no generator, so fork the global one to leave its state unchanged.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = AutoConfig.from_pretrained(source, **options)
        return AutoModelForCausalLM.from_config(shape, dtype=dtype)


def resolve_source(config: ModelConfig) -> str:
    """The folder or Hub id that `model.name` means; a cached folder while the Hub is unreachable.

    Raises InvalidConfig on `model.name` for a folder that cannot be loaded safely.
    """
    name = config.name.strip()
    if name == "bundled":
        return str(BUNDLED)
    folder = Path(name).expanduser()
    try:
        is_folder, exists = folder.is_dir(), folder.exists()
    except (OSError, ValueError):  # names too long for the file system, NUL bytes
        is_folder = exists = False
    if is_folder:
        _check_folder(folder, config)
        return str(folder)
    if exists:
        refuse(config, "this is a file, not a model folder")
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name) or ".." in name:
        refuse(config, "there is no such folder, and it is no Hub id")
    if not model_unreachable(name, config.revision):
        return name
    snapshot = cached_snapshot(name, config.revision)
    if snapshot is None:
        refuse(config, "it is not on this machine, and the Hub could not be reached")
    return str(snapshot)


def _check_folder(folder: Path, config: ModelConfig) -> None:
    if not (folder / "config.json").is_file():
        refuse(config, "the folder has no config.json")
    if config.init != "weights" or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(
        p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern)
    )
    if pickles:
        refuse(
            config,
            f"it has pickled weights only ({', '.join(pickles[:3])}), "
            "and loading a pickle runs any code in it",
            "If you trust it, convert it with save_pretrained(…, safe_serialization=True).",
        )
    refuse(
        config,
        "the folder has no *.safetensors file",
        "Add the weights, or choose random initial weights.",
    )


def _load_model_config(source: str, config: ModelConfig) -> PreTrainedConfig:
    try:
        # Not in the cache: transformers itself has the code of many models with an auto_map.
        raw = Path(config.name.strip()).expanduser() / "config.json"
        if raw.is_file() and "auto_map" in (data := json.loads(raw.read_text("utf-8"))):
            refuse(
                config,
                f"it needs code from its own folder ({', '.join(data['auto_map'])}), "
                "which is never run here",
            )
        return AutoConfig.from_pretrained(source, trust_remote_code=False, revision=config.revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, web.HTTPError) as error:
        refuse(config, f"its configuration cannot be loaded: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    """The first line of a library's error; the rest is advice for programmers.

    transformers wraps the Hub's errors in its own, so the causes are searched first.
    """
    cause: BaseException | None = error
    while cause is not None:
        for kind, message in _HUB_ERRORS:
            if isinstance(cause, kind):
                return message
        cause = cause.__cause__ or cause.__context__
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:200]


def refuse(config: ModelConfig, problem: str, hint: str = _HINT) -> NoReturn:
    """Raise InvalidConfig on `model.name`."""
    raise InvalidConfig([FieldProblem("model.name", config.name, problem, hint)]) from None
