"""Fixtures of all tests: no network, a tiny random-weight model, a store, a run manager."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the Hub is a broken test
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from grpo_core.runs.manager import RunManager
from grpo_core.store import Store


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random-weight Llama (2 layers, width 32) and the bundled tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from scripts.bundled_model.make import make_tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=128,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def two_threads() -> Iterator[None]:
    """torch computes with two threads, whatever the machine has."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_settings(tiny_model: Path) -> dict[str, object]:
    """Settings of a run of a second: 3 steps of 2 prompts x 4 completions of at most 8 tokens."""
    return {
        "model.name": str(tiny_model),
        "task.heldout_size": 8,
        "train.steps": 3,
        "train.prompts_per_step": 2,
        "train.group_size": 4,
        "train.max_new_tokens": 8,
        "train.eval_every": 0,
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "runs.sqlite")
    yield store
    store.close()


@pytest.fixture
def manager(store: Store) -> Iterator[RunManager]:
    """A run manager that really trains, with no queue for the device."""
    from grpo_core.training.trainer import train  # torch takes seconds

    manager = RunManager(store, train)
    yield manager
    manager.close()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 20 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def pytest_make_parametrize_id(val: object) -> str | None:
    """Short ids: the first words of a long text."""
    if not isinstance(val, str) or len(val) <= 30:
        return None
    return " ".join(val.split())[:30]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long faults run with `pytest -m faults` only."""
    if "faults" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
