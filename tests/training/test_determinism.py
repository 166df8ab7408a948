"""Whether a run repeats: what is set for it, what is refused, and what is said."""

from __future__ import annotations

import json
import os
import warnings
from dataclasses import asdict

import pytest
import torch
from pretended_cards import GB, pretend_cards

from grpo_core.config import nest, parse
from grpo_core.errors import InvalidConfig
from grpo_core.learner.aggregation import entropy_threshold
from grpo_core.models import device
from grpo_core.rollout.draw import running_sum
from grpo_core.training.control import RunControl
from grpo_core.training.determinism import CUBLAS_VARIABLE, determinism, how_it_repeats
from grpo_core.training.trainer import train
from grpo_core.types import ModelLoaded, StepCompleted


@pytest.fixture(autouse=True)
def _no_workspace(monkeypatch):
    monkeypatch.delenv(CUBLAS_VARIABLE, raising=False)


def test_it_is_set_inside_the_block_and_undone_after_it():
    torch.backends.cudnn.benchmark = True
    with determinism(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ[CUBLAS_VARIABLE] == ":4096:8"
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    with determinism(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_that_does_not_repeat_ends_the_run_and_names_the_field():
    with (
        pytest.raises(InvalidConfig, match=r"train\.deterministic = True: put_ does not repeat"),
        determinism(True),
    ):
        torch.zeros(2).put_(torch.tensor([0, 0]), torch.ones(2))
    assert not torch.are_deterministic_algorithms_enabled()


def test_an_operation_that_only_warns_ends_the_run_too():
    text = "Flash Attention defaults to a non-deterministic algorithm."
    with pytest.raises(InvalidConfig, match=r"train\.deterministic"), determinism(True):
        warnings.warn(text, stacklevel=1)
    with pytest.warns(UserWarning, match="unrelated"), determinism(True):
        warnings.warn("unrelated", stacklevel=1)


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="CUDA out of memory"), determinism(True):
        raise RuntimeError("CUDA out of memory")


def test_a_deterministic_run_on_a_cpu_has_the_numbers_of_an_ordinary_one(tiny_settings):
    def record(**settings):
        events = []
        train(parse(nest(tiny_settings | settings)), events.append, RunControl())
        steps = [asdict(e.metrics) for e in events if isinstance(e, StepCompleted)]
        kept = [
            {k: v for k, v in s.items() if "seconds" not in k and "peak" not in k} for s in steps
        ]
        env = next(e.env for e in events if isinstance(e, ModelLoaded))
        return json.dumps(kept), env

    ordinary, env = record()
    assert record(**{"train.deterministic": True})[0] == ordinary
    assert env["device_name"] == "cpu"
    assert env["repeats"].endswith("bit for bit.")
    assert env["precision"].startswith("float32: ")


def test_the_record_says_how_far_a_run_repeats():
    cuda = torch.device("cuda:0")
    assert "statistically" in how_it_repeats(cuda, False)
    assert "With train.deterministic" in how_it_repeats(cuda, False)
    assert how_it_repeats(cuda, True) == how_it_repeats(torch.device("cpu"), False)
    assert "train.deterministic" not in how_it_repeats(torch.device("mps"), True)


@pytest.mark.parametrize("size", [1, 2, 3, 256, 594])
def test_the_sum_that_repeats_on_a_card_is_the_running_sum(size):
    values = torch.rand(4, size, generator=torch.Generator().manual_seed(0))
    expected = values.double().cumsum(-1)
    assert torch.allclose(running_sum(values, doubling=True), expected, rtol=1e-14, atol=0)
    assert torch.equal(running_sum(values), expected)


def test_the_threshold_of_entropy_needs_no_operation_that_does_not_repeat():
    entropy = torch.tensor([4.0, 1.0, 3.0, 2.0, 5.0])
    with determinism(True):
        assert entropy_threshold(entropy, 0.25) == 4.0
        assert entropy_threshold(entropy, 0.125) == 4.5


def test_the_size_of_decode_batches_does_not_depend_on_other_programs(monkeypatch):
    cuda = torch.device("cuda:0")
    sizes = set()
    for free in (5 * GB, 70 * GB):
        pretend_cards(monkeypatch, 1, free=free)
        with determinism(True):
            sizes.add(device.room_for_sampling(cuda))
        assert device.room_for_sampling(cuda) == free
    assert sizes == {40 * GB}
