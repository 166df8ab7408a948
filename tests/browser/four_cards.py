"""A server of the page on a machine with four pretended cards, whose trainer only waits."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parents[1] / "ui"))

from recorded import FakeService, record_run

from grpo_core.runs.device_queue import Machine
from grpo_core.runs.manager import RunManager
from grpo_core.store import Store
from grpo_core.training.timing import RunTimer
from grpo_core.types import ModelLoaded, Phase, PhaseStarted, StepCompleted, StepMetrics
from ui.page import build_app, launch_options

CARDS = ("cuda:0", "cuda:1", "cuda:2", "cuda:3", "cpu")
CARD = "Pretended card, 80 GB"
REPORT = SimpleNamespace(
    architecture="Qwen3ForCausalLM",
    parameters=596_049_920,
    trained_parameters=596_049_920,
    dtype="bfloat16",
    device=CARD,
    context=40_960,
    chat_template=True,
    end_tokens={"tokenizer": ["<|im_end|>"]},
    ends_agree=True,
    bytes_by_part={"weights": 1_192_099_840, "optimiser": 1_788_149_760},
    needed_bytes=2_980_249_600,
    free_bytes=84_000_000_000,
    workers=4,
    fitting_micro_batch=100_000,
    problems=(),
    remarks=("Each worker takes 2 of the 8 groups of a step.",),
)


def train(config, emit, control):
    control.points.timer = RunTimer(emit)
    emit(PhaseStarted(Phase.LOADING, 0, config.train.steps))
    workers = config.train.workers
    env = {"device_name": config.model.device.partition(",")[0], "dtype": "bfloat16"}
    if workers > 1:
        env |= {"workers": workers, "devices": f"{workers} × {CARD}", "nodes": 2}
    emit(ModelLoaded(env))
    emit(StepCompleted(1, StepMetrics(reward_mean=0.1, step_seconds=2.0, tokens=100), {}))
    emit(PhaseStarted(Phase.SAMPLING, 2, config.train.steps))
    with control.changed:
        while True:
            control.points.check_interrupt()
            control.changed.wait(0.1)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--db")
    parser.add_argument("--no-example", action="store_true")
    given = parser.parse_args()
    store = Store(given.db)
    record_run(store, "an earlier run")
    runs = RunManager(store, train, machine=Machine(f"4 GPUs: 4 × {CARD}", CARDS))
    page = build_app(store, runs, FakeService((REPORT, "6")))
    page.launch(
        server_port=given.port, prevent_thread_lock=True, quiet=True, **launch_options(page)
    )
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    runs.close()


if __name__ == "__main__":
    main()
