"""What is checked in a model's folder before anything in it is loaded.

A folder may come from a stranger. Its weights are safetensors, its files lie in it, its JSON is
plain, and none of its settings names code or other files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from grpo_core.config import ModelConfig

INDEX = "model.safetensors.index.json"
TEMPLATES = "additional_chat_templates"  # the only folder in a model's folder that is read
# Files of settings. tokenizer.json is read by the tokenizers library, within limits of its own.
_SETTINGS = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    INDEX,
)
MAX_SETTINGS_BYTES = 64 * 2**20  # the index of a model of 100,000 tensors has 10 MB
MAX_TEXT_BYTES = 512 * 2**20  # of a vocabulary or template; a large tokenizer.json has 50 MB
_TEXTS = (".json", ".model", ".txt", ".jinja")
MAX_MESSAGE = 600  # characters of a refusal; names in it come from the folder
MAX_DEPTH = 64  # of nested JSON; a real configuration needs six
# Building a model makes objects for each layer, head or label that these settings count, also where
# its weights take no memory. So these counts are limited before the bytes are known.
MAX_LAYERS = 2_000
MAX_COUNT = 100_000
_LAYERS = re.compile(r"(layers?|blocks|depth|stages)$")
_COUNTED = re.compile(r"layer|block|stage|depth|level|head|expert|label|group|codebook|mtp|ngram")
_SIZE = re.compile(
    r"size|dim|vocab|length|window|position"
)  # limited in bytes instead (shape.check_memory)
# How many times longer the replacements of a tokenizer may make a text, one after the other.
MAX_GROWTH = 1_000
_TOKENIZER_CLASS = re.compile(r"\w+Tokenizer(Fast)?|\w+Backend")
_PART = re.compile(r"shard-\d{5}-model-.*\.safetensors")  # of a distributed checkpoint
# Settings by which a configuration would choose other files to read.
_OTHER_FILES = (
    "configuration_files",
    "fast_tokenizer_files",
    "transformers_weights",
    "gguf_file",
    "vocab",  # a path, or the content of a file
    "merges",
)
# Kinds of quantised weights that can be trained as they are.
_QUANTISED = ("mxfp4", "bitsandbytes")
AGAIN = "Download the model again, or save it again with save_pretrained."


class BadModel(Exception):
    """Why a model cannot be loaded, and what to do, each in one line of printable text."""

    def __init__(self, problem: str, hint: str = AGAIN):
        shown = "".join(c if c.isprintable() else " " for c in problem[:MAX_MESSAGE])
        super().__init__(shown)
        self.problem, self.hint = shown, hint


def check_folder(folder: Path, config: ModelConfig, is_local: bool) -> dict[str, Any]:
    """The folder's configuration, after a check of all files that loading reads.

    is_local: a folder that a person named, with weights; else a snapshot in the Hub's cache, whose
    weights may come later. Raises BadModel.
    """
    root, adapter = _root(folder), folder / "adapter_config.json"
    if not (adapter.is_file() or (folder / "config.json").is_file()):
        hint = "Name a folder with config.json, a tokenizer and *.safetensors."
        raise BadModel("the folder has no config.json", hint)
    for file in _files(folder):
        _check_file(file, root)
    if adapter.is_file():
        base = read_object(adapter).get("base_model_name_or_path")
        hint = "Merge it into its base with peft's merge_and_unload, save that, and name it."
        raise BadModel(
            f"it is a LoRA adapter of {str(base)[:200]!r}, without weights to train", hint
        )
    if (tokenizer := folder / "tokenizer.json").is_file():
        stat = tokenizer.stat()
        if _growth(tokenizer, stat.st_mtime_ns, stat.st_size) > MAX_GROWTH:
            problem = (
                f"its tokenizer's replacements make a text more than {MAX_GROWTH:,} times longer"
            )
            raise BadModel(problem)
    settings = {n: read_object(folder / n) for n in _SETTINGS if (folder / n).is_file()}
    _check_settings(settings, config, is_local)
    if config.init == "weights":
        # transformers prefers such parts to every other file, and ignores what it cannot use.
        if any(_PART.fullmatch(file.name) for file in _files(folder)):
            hint = "Save it in one piece with save_pretrained."
            raise BadModel("its weights are the parts of a distributed checkpoint", hint)
        if INDEX in settings and not (folder / "model.safetensors").is_file():
            _check_index(settings[INDEX], folder, is_local)
        elif is_local:
            _check_weights(folder)
    return settings["config.json"]


# ---- files -----------------------------------------------------------------------------------


def _root(folder: Path) -> Path:
    """Where links of the folder may lead: into it, or anywhere in a model's part of a Hub cache."""
    folder = folder.resolve()
    is_cached = folder.parent.name == "snapshots" and (folder.parents[1] / "blobs").is_dir()
    is_cached = is_cached and folder.parents[1].name.startswith("models--")
    return folder.parents[1] if is_cached else folder


def _files(folder: Path) -> Iterator[Path]:
    for place in (folder, folder / TEMPLATES):
        if place.is_dir():
            inside = (p for p in place.iterdir() if not p.name.startswith("."))
            yield from sorted(p for p in inside if p.name == TEMPLATES or not p.is_dir())


def _check_file(file: Path, root: Path) -> None:
    try:
        target = file.resolve()
    except (OSError, RuntimeError):
        raise BadModel(f"{file.name} is a link that leads nowhere") from None
    if not target.is_relative_to(root):
        raise BadModel(f"{file.name} is a link out of the folder", "Copy the file into the folder.")
    if file.name == TEMPLATES:
        return
    if not target.is_file():
        raise BadModel(f"{file.name} is not a regular file")
    if file.suffix in _TEXTS and target.stat().st_size > MAX_TEXT_BYTES:
        raise BadModel(f"{file.name} has more than {MAX_TEXT_BYTES >> 20:,} MiB")


def _check_weights(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    patterns = ("*.bin", "*.pt", "*.pth", "*.ckpt")
    pickles = sorted(p.name for pattern in patterns for p in folder.glob(pattern))
    if pickles:
        raise BadModel(
            f"it has pickled weights only ({', '.join(pickles[:3])}), "
            "and loading a pickle runs any code in it",
            "If you trust it, convert it with save_pretrained(…, safe_serialization=True).",
        )
    hint = "Add the weights, or choose random initial weights."
    raise BadModel("the folder has no *.safetensors file", hint)


def _check_index(index: dict[str, Any], folder: Path, is_local: bool) -> None:
    """Every entry is a plain *.safetensors file of the folder: any other would be unpickled."""
    files = index.get("weight_map")
    if not isinstance(files, dict) or not files or not isinstance(index.get("metadata"), dict):
        raise BadModel(f"{INDEX} needs the objects weight_map and metadata")
    for name, file in files.items():
        is_plain = isinstance(file, str) and re.fullmatch(r"[\w-][\w.-]*\.safetensors", file)
        if not is_plain:
            problem = f"{INDEX} names {str(file)[:100]!r} for {name[:100]}"
            raise BadModel(f"{problem}, which is no *.safetensors file of its folder")
    absent = sorted(f for f in set(files.values()) if not (folder / f).is_file())
    if is_local and absent:
        some = ", ".join(absent[:3]) + (", …" if len(absent) > 3 else "")
        raise BadModel(f"the folder lacks {len(absent)} files of its weights: {some}")


# ---- settings --------------------------------------------------------------------------------


@lru_cache(maxsize=64)  # a large tokenizer.json takes half a second to parse
def _growth(tokenizer: Path, _mtime: int, _size: int) -> float:
    """How many times longer the replacements in a tokenizer.json can make a text."""
    data = read_object(tokenizer, MAX_TEXT_BYTES)
    steps = [data.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    growth = 1.0
    while steps:
        step = steps.pop()
        if isinstance(step, (list, dict)):
            steps += step.values() if isinstance(step, dict) else step
        if isinstance(step, dict) and step.get("type") == "Replace":
            pattern, content = step.get("pattern"), str(step.get("content") or "")
            text = pattern.get("String") if isinstance(pattern, dict) else None
            # A regular expression may match between all characters.
            growth *= max(1.0, len(content) / len(text)) if text else 1.0 + len(content)
    return growth


def read_object(file: Path, max_bytes: int = MAX_SETTINGS_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises BadModel if it holds anything else, or odd JSON."""
    try:
        if file.stat().st_size > max_bytes:
            raise ValueError(f"it has more than {max_bytes >> 20} MiB")
        text = file.read_text("utf-8")
        data = json.loads(text, object_pairs_hook=_unique, parse_constant=_constant)
        if not isinstance(data, dict):
            raise ValueError(f"it holds a {type(data).__name__}, not an object")
        if _depth(data) > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")
    except (OSError, ValueError, RecursionError) as error:
        text = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise BadModel(
            f"{file.name} cannot be read as JSON: {text.splitlines()[0][:200]}"
        ) from None
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:100]!r} occurs twice")
    return data


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("it holds NaN")
    return float(name)  # state-space models write Infinity as an upper bound


def _depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inside), default=0)


def parts(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The object and all objects in it but tables of labels: a composite model has several."""
    yield settings
    for name, value in settings.items():
        if isinstance(value, dict) and name not in ("id2label", "label2id"):
            yield from parts(value)


def _check_settings(
    settings: dict[str, dict[str, Any]], config: ModelConfig, is_local: bool
) -> None:
    """No setting names code, other files, or a number of parts that would never end."""
    shape, tokenizer = settings["config.json"], settings.get("tokenizer_config.json", {})
    # Not on the Hub: transformers itself has the code of many models there with an auto_map.
    if is_local and (code := shape.get("auto_map")):
        some = ", ".join(map(str, code)) if isinstance(code, (dict, list)) else str(code)
        raise BadModel(
            f"it needs code from its own folder ({some[:200]}), which is never run here",
            "If transformers itself knows its model_type, remove auto_map from config.json; "
            "else name another model.",
        )
    for part in parts(shape):
        _check_counts(part)
        if config.init == "weights" and part.get("quantization_config") is not None:
            _check_quantisation(part["quantization_config"], config)
    for file, part in (("config.json", shape), ("tokenizer_config.json", tokenizer)):
        for key in _OTHER_FILES:
            if part.get(key) is not None:
                raise BadModel(f"{file} names other files by {key}", f"Remove {key} from it.")
        name = part.get("tokenizer_class")
        is_tokenizer = isinstance(name, str) and _TOKENIZER_CLASS.fullmatch(name)
        # AutoTokenizer would call itself without end.
        if name is not None and (not is_tokenizer or name == "AutoTokenizer"):
            problem = f"{file} gives {str(name)[:100]!r} as tokenizer_class"
            raise BadModel(f"{problem}, which is not a tokenizer")
    if tokenizer.get("init_inputs"):
        hint = "Remove init_inputs from it."
        raise BadModel("tokenizer_config.json names arguments by init_inputs", hint)


def _check_counts(part: dict[str, Any]) -> None:
    for key, value in part.items():
        if not isinstance(value, int) or not _COUNTED.search(key) or _SIZE.search(key):
            continue
        limit = MAX_LAYERS if _LAYERS.search(key) else MAX_COUNT
        if abs(value) > limit:
            # A number of thousands of digits has no text.
            shown = f"{value:,}" if abs(value) < 10**30 else "a number of more than 30 digits"
            raise BadModel(
                f"config.json gives {shown} as {key}, and at most {limit:,} can be built"
            )


def _check_quantisation(quantised: Any, config: ModelConfig) -> None:
    method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
    if isinstance(quantised, dict) and method is None:  # as older versions wrote it
        method = "bitsandbytes" if quantised.get("load_in_4bit") else "an unnamed method"
    hint = "Name the model without quantisation; model.base_bits = 4 quantises it for LoRA."
    if method not in _QUANTISED:
        raise BadModel(
            f"its weights are quantised by {str(method)[:60]}, so they do not train", hint
        )
    if method == "bitsandbytes" and config.base_bits != "4":
        hint = "Set model.base_bits to 4 and model.lora_rank to 16."
        raise BadModel("its weights are quantised by bitsandbytes, so they do not train", hint)
