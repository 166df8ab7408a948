"""What Check model and Preflight say of runs with several workers."""

from __future__ import annotations

import pytest
import torch
from pretended_cards import GB, pretend_cards

from grpo_core.config import nest, parse
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.models.load import examine
from grpo_core.preflight.model_report import report
from grpo_core.preflight.preflight import _worker_findings
from grpo_core.preflight.room import choose_device
from grpo_core.preflight.service import PreflightService, ServiceOptions
from grpo_core.training.memory_estimate import ModelSize, memory


def config(workers, **settings):
    return parse(nest({"train.workers": workers, **settings}))


def test_each_worker_has_its_share_of_groups_masters_and_averages():
    alone, four = report(config(1)), report(config(4))
    parameters = alone.parameters
    assert alone.bytes_by_part["optimiser"] == 8 * parameters  # AdamW's two float32 averages
    assert four.bytes_by_part["optimiser"] == 12 * parameters // 4  # and masters, in four shards
    for whole in ("weights", "reference", "gradients"):
        assert four.bytes_by_part[whole] == alone.bytes_by_part[whole]
    kept = "cache while sampling"
    assert alone.bytes_by_part[kept] == 4 * four.bytes_by_part[kept]  # 8 groups, and 2 of them
    assert four.workers == 4
    assert four.free_bytes < 0.3 * alone.free_bytes  # they share the machine's memory
    assert "Each worker takes 2 of the 8 groups of a step." in four.remarks


def test_bfloat16_masters_are_shared_out_too_and_adapters_are_not():
    _, shape, _ = examine(config(1).model)
    size = ModelSize(shape, 1_000_000, 1_000_000, torch.bfloat16)

    def optimiser(workers, **settings):
        return memory(config(workers, **settings), size, False)[0]["optimiser"]

    assert optimiser(1) == 12_000_000
    assert optimiser(4) == 3_000_000
    lora = {"model.lora_rank": 8}
    assert optimiser(4, **lora) == optimiser(1, **lora) == 8_000_000


def test_preflight_warns_where_workers_wait_for_others():
    assert _worker_findings(config(1)) == []
    [even] = _worker_findings(config(4))
    assert (even.level, even.text) == ("green", "Each worker takes 2 of the 8 groups of a step.")
    [uneven] = _worker_findings(config(3))
    assert uneven.level == "amber"
    assert uneven.text.endswith("Set Prompts per step to a multiple of Workers.")


def test_preflight_takes_its_step_on_as_many_devices_as_the_run(monkeypatch):
    pretend_cards(monkeypatch, 3)
    in_use = {"cuda:0"}
    service = PreflightService(options=ServiceOptions(in_use=lambda: in_use))
    placed = service._placed(config(2))
    assert placed is not None
    assert placed.model.device == "cuda:1,cuda:2"
    assert service._placed(config(3)) is None
    with pytest.raises(InvalidConfig, match=r"train\.workers = 4: this run can use 3 devices"):
        service._placed(config(4))
    with pytest.raises(StudioError, match="Stop the run, wait, or name another device"):
        service.preflight(config(3))


def test_the_command_line_takes_idle_cards_first(monkeypatch):
    pretend_cards(monkeypatch, 4, free=[50 * GB, 79 * GB, GB // 2, 79 * GB])
    assert choose_device(config(2)) == "cuda:1,cuda:3"
    assert choose_device(config(3)) == "cuda:1,cuda:3,cuda:0"  # the last one it shares
    with pytest.raises(InvalidConfig, match="are free on cuda:2"):
        choose_device(config(4))
    assert choose_device(config(2, **{"model.device": "cpu"})) == "cpu"
    monkeypatch.setenv("GRPO_RAY", "head:6379")
    assert choose_device(config(8)) == "auto"
