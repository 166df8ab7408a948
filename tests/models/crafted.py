"""How tests damage a model folder, and what they expect of the refusal."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from grpo_core.config import ModelConfig
from grpo_core.errors import InvalidConfig
from grpo_core.models import load_policy

CPU = torch.device("cpu")
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
UP = "model.layers.1.mlp.up_proj.weight"
ODD = {
    "deep": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "rather deep": b'{"a":' + b"[" * 500 + b"]" * 500 + b"}",
    "a list": b"[1, 2]",
    "a number": b"3",
    "nothing": b"",
    "not a number": b'{"hidden_size": NaN}',
    "long number": b'{"hidden_size": ' + b"9" * 10_000 + b"}",
    "no UTF-8": b'{"model_type": "\xff\xfe"}',
    "half": b'{"model_type": "llama"',
    "surrogate": b'{"model_type": "\\ud800"}',
    "nulls": b"\0" * 100,
}


def load(folder: Path, **options):
    return load_policy(ModelConfig(name=str(folder), **options), 0, CPU)


def refusal(folder: Path, loader=load) -> str:
    """The line that refuses a folder, which must not load."""
    text = one_line(loader, folder)
    assert text is not None, "it was not refused"
    return text


def one_line(loader, folder: Path) -> str | None:
    """The line that refuses a folder, or None where it loads; other errors are raised."""
    try:
        loader(folder)
    except InvalidConfig as error:
        text = str(error)
        assert text.startswith("model.name = ")
        assert "\n" not in text
        return text
    return None


def change_json(file: Path, **values) -> None:
    data = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**data, **values}))


def change_weights(folder: Path, change) -> None:
    tensors = load_file(folder / WEIGHTS)
    save_file(change(tensors), folder / WEIGHTS, {"format": "pt"})


def without(*names: str):
    return lambda tensors: {n: t for n, t in tensors.items() if n not in names}
