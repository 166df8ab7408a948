"""From a name to a Policy. Safetensors only, no code from the model's folder; what cannot work is said in one line."""

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
    GenerationConfig,
)
from transformers.utils import logging as transformers_logging

from grpo_core.config import ModelConfig
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.models.device import pick_device
from grpo_core.models.lora import add_adapters
from grpo_core.models.policy import Policy, Reader

try:
    import httpx2 as web  # what huggingface_hub speaks with since 2.x
except ImportError:
    import httpx as web  # and before

transformers_logging.disable_progress_bar()  # its bar over weights would run through the command line's own

BUNDLED = Path(__file__).parent / "bundled"
_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")
_WAY_OUT = "Write bundled, a folder with config.json, a tokenizer and *.safetensors, or a Hub id such as Qwen/Qwen3-0.6B."
# Ends of a turn in common chat templates: a model that learned to stop at one must be allowed to.
_TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|end_of_turn|>",
    "<end_of_turn>",
    "<|end|>",
    "<|endoftext|>",
    "<turn|>",
    "<|return|>",
)


_TOKEN = "a token with that right in the environment variable HF_TOKEN; it is read there and written nowhere"
# Most precise first: some are kinds of others.
_HUB_SAID: tuple[tuple[type[BaseException], str], ...] = (
    (hub.GatedRepoError, f"the Hub gives it only to people who accepted its terms, with {_TOKEN}"),
    (hub.RevisionNotFoundError, "the Hub has no such revision of it"),
    (
        hub.RepositoryNotFoundError,
        f"the Hub has no such model, or a private one that needs {_TOKEN}",
    ),
    (
        hub.OfflineModeIsEnabled,
        "it is not on this machine, and HF_HUB_OFFLINE forbids asking the Hub",
    ),
    (
        hub.LocalEntryNotFoundError,
        "it is not on this machine, and the Hub could not be reached or did not send it whole",
    ),
    (web.TransportError, "the Hub could not be reached or did not send it whole"),
)


def check_model(config: ModelConfig) -> None:
    """Find out, before a run is created, what can be found out without reading weights. Raises InvalidConfig on `model.name`."""
    source = _source(config)
    model_config = _model_config(source, config)
    check_base(config, pick_device())
    if getattr(model_config, "is_encoder_decoder", False):
        _refuse(
            config,
            f"{model_config.model_type} is an encoder-decoder; GRPO here needs a decoder-only language model",
        )


def load_policy(config: ModelConfig, seed: int, device: torch.device | None = None) -> Policy:
    """Load model and tokenizer onto the device. bfloat16 on CUDA and float32 elsewhere unless the configuration says otherwise.

    init "random": the architecture with fresh weights drawn from `seed`. Raises InvalidConfig on `model.name`.
    """
    check_model(config)
    device = device or pick_device()
    source, options = _source(config), {"trust_remote_code": False, "revision": config.revision}
    dtype = precision(config, device)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        if config.init == "random":
            model = _random_weights(source, options, dtype, seed)
        else:
            model = AutoModelForCausalLM.from_pretrained(
                source,
                dtype=dtype,
                use_safetensors=True,
                **options,
                **(_four_bits(device) if config.base_bits == "4" else {}),
            )
    except (
        OSError,
        ValueError,
        RuntimeError,
        ImportError,
        KeyError,
        TypeError,
        SafetensorError,
        web.HTTPError,
    ) as error:
        _refuse(config, f"it cannot be loaded: {_one_line(error)}")
    if config.lora_rank:
        add_adapters(model, config, seed)
    if config.base_bits == "16":
        model.to(device)
    model.eval()  # dropout would make the policy differ from itself, and KL at step 0 differ from 0
    pad = tokenizer.pad_token_id
    end_ids = _end_ids(model, tokenizer)
    if not end_ids:
        _refuse(
            config,
            "neither its generation config nor its tokenizer names an end token, so no completion would ever end",
        )
    return Policy(
        model,
        tokenizer,
        end_ids,
        pad if pad is not None else min(end_ids),
        getattr(model.config, "max_position_embeddings", None),
    )


def check_base(config: ModelConfig, device: torch.device) -> None:
    """Whether the base can be held in 4 bits as asked. Raises InvalidConfig on `model.base_bits`."""
    if config.base_bits == "16":
        return
    why = (
        (
            "it needs LoRA: 4-bit weights cannot be trained themselves",
            "Set model.lora_rank to 16, or base_bits to 16.",
        )
        if not config.lora_rank
        else (
            f"it needs CUDA, and this machine trains on {device.type}",
            "Set it to 16, or train on a machine with an NVIDIA GPU.",
        )
        if device.type != "cuda"
        else (
            "it needs the package bitsandbytes",
            "Install it: pip install bitsandbytes. Or set it to 16.",
        )
        if not importlib.util.find_spec("bitsandbytes")
        else ("random weights gain nothing by it", "Set it to 16.")
        if config.init == "random"
        else None
    )
    if why:
        raise InvalidConfig([FieldProblem("model.base_bits", config.base_bits, *why)])


def _four_bits(device: torch.device) -> dict[str, Any]:
    """QLoRA's base (arXiv:2305.14314): NF4 with doubly quantised constants, multiplied in bfloat16. Placed while it is loaded: it cannot be moved later."""
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
    """The tokenizer and context alone: enough to show and count prompts, in a moment."""
    source = _source(config)
    context = getattr(_model_config(source, config), "max_position_embeddings", None)
    try:
        return Reader(
            AutoTokenizer.from_pretrained(
                source, trust_remote_code=False, revision=config.revision
            ),
            context,
        )
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, TypeError) as error:
        _refuse(config, f"its tokenizer cannot be loaded: {_one_line(error)}")


def load_classifier(name: str, revision: str = "main") -> tuple[Any, Any]:
    """A sequence-classification model with its tokenizer on the device, under the same rules as a policy: safetensors only, no code of its own."""
    config = ModelConfig(name=name or " ", revision=revision)
    source, device = _source(config), pick_device()
    _model_config(source, config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            source, trust_remote_code=False, revision=revision
        )
        model = AutoModelForSequenceClassification.from_pretrained(
            source,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            revision=revision,
        )
    except (
        OSError,
        ValueError,
        RuntimeError,
        ImportError,
        KeyError,
        TypeError,
        SafetensorError,
    ) as error:
        raise StudioError(
            f"the reward model {name!r} cannot be loaded: {_one_line(error)}. Name a sequence-classification model."
        ) from None
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.truncation_side = "left"  # the end of the completion is what is judged
    return model.to(device).eval(), tokenizer


def precision(config: ModelConfig, device: torch.device) -> torch.dtype:
    """What the weights are held in: bfloat16 on CUDA and float32 elsewhere, unless the configuration says otherwise."""
    named = "bfloat16" if device.type == "cuda" else "float32"
    return getattr(torch, named if config.dtype == "auto" else config.dtype)


def _random_weights(source: str, options: dict[str, Any], dtype: torch.dtype, seed: int) -> Any:
    with torch.random.fork_rng(
        devices=[]
    ):  # initialisation has no generator argument; leave the process's own alone
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(source, **options), dtype=dtype
        )


def _source(config: ModelConfig) -> str:
    """The folder or Hub id behind a name; refuses folders that could not be loaded safely."""
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
        _refuse(config, "this is a file, not a model folder")
    if name.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(name) or ".." in name:
        _refuse(config, "there is no such folder, and it is no Hub id")
    return name


def _check_folder(folder: Path, config: ModelConfig) -> None:
    if not (folder / "config.json").is_file():
        _refuse(config, "the folder has no config.json")
    if config.init == "weights" and not any(folder.glob("*.safetensors")):
        pickles = sorted(
            p.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for p in folder.glob(pattern)
        )
        if pickles:
            _refuse(
                config,
                f"it has pickled weights only ({', '.join(pickles[:3])}), and loading a pickle runs whatever code is in it",
                "Convert it with save_pretrained(…, safe_serialization=True) where you trust it.",
            )
        _refuse(
            config,
            "the folder has no *.safetensors file",
            "Add the weights, or choose random initial weights.",
        )


def _model_config(source: str, config: ModelConfig) -> Any:
    try:
        raw = Path(source) / "config.json"
        if raw.is_file() and "auto_map" in (data := json.loads(raw.read_text("utf-8"))):
            _refuse(
                config,
                f"it needs code from its own folder ({', '.join(data['auto_map'])}), which is never run here",
            )
        return AutoConfig.from_pretrained(source, trust_remote_code=False, revision=config.revision)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, web.HTTPError) as error:
        _refuse(config, f"its configuration cannot be loaded: {_one_line(error)}")


def _end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    generation: GenerationConfig | None = getattr(model, "generation_config", None)
    named = getattr(generation, "eos_token_id", None)
    ids = set(named if isinstance(named, (list, tuple)) else [named]) | {tokenizer.eos_token_id}
    special = set(tokenizer.all_special_tokens) | set(tokenizer.get_added_vocab())
    ids |= {tokenizer.convert_tokens_to_ids(t) for t in _TURN_ENDS if t in special} | {
        template_end(tokenizer)
    }
    return frozenset(i for i in ids if i is not None)


def template_end(tokenizer: Any) -> int | None:
    """The id with which the chat template ends an assistant's turn; None without a template, or when it ends with no token of its own."""
    if not tokenizer.chat_template:
        return None
    said = "grpo said this"
    try:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "?"}, {"role": "assistant", "content": said}],
            tokenize=False,
        )
    except (
        Exception
    ):  # templates are programs of their authors: one that refuses this chat tells nothing
        return None
    after = text.rpartition(said)[2].lstrip()
    ids = tokenizer(after, add_special_tokens=False)["input_ids"] if after else []
    added = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    return ids[0] if ids and ids[0] in added else None


def _one_line(error: BaseException) -> str:
    """The first sentence of a library's error; the rest is advice for programmers. What the Hub said lies beneath transformers' own words."""
    beneath: BaseException | None = error
    while beneath is not None:
        for kind, said in _HUB_SAID:
            if isinstance(beneath, kind):
                return said
        beneath = beneath.__cause__ or beneath.__context__
    first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return first[:200]


def _refuse(config: ModelConfig, problem: str, hint: str = _WAY_OUT) -> NoReturn:
    raise InvalidConfig([FieldProblem("model.name", config.name, problem, hint)]) from None
