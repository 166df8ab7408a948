"""Long runs as few points, read from the store."""

from __future__ import annotations

from grpo_core.config import RunConfig
from grpo_core.store import Recorder, Store
from grpo_core.types import StepCompleted, StepMetrics
from ui.render import charts
from ui.server.views import Views

STEPS = 12_000


def test_spikes_of_12000_steps_survive_in_1000_points_a_trace(store: Store):
    # Thinned to 5,000 by a stride of 4, steps 1, 5, 9, … stay, and none of these is among them.
    odd = {4_999: {"loss": 40.0}, 5_002: {"kl": 7.0}, 7_003: {"reward_mean": -3.0}}
    run_id = store.create_run(RunConfig(), "long")
    with store.writing() as writer, Recorder(store, run_id) as record, writer.transaction():
        for step in range(1, STEPS + 1):
            record(
                StepCompleted(
                    step,
                    StepMetrics(
                        **(
                            {
                                "loss": 0.001 * (step % 7),
                                "kl": 0.02,
                                "reward_mean": 0.5,
                                "reward_std": 0.1,
                                "tokens": 10,
                                "step_seconds": 1.0,
                            }
                            | odd.get(step, {})
                        )
                    ),
                    {"score/accuracy": 9.0 if step == 8_002 else 0.5},
                )
            )
    views = Views(store)
    for name, spike, at in (
        ("loss", 40.0, 4_999),
        ("kl", 7.0, 5_002),
        ("reward", -3.0, 7_003),
        ("criteria", 9.0, 8_002),
    ):
        line = next(
            t for t in views.figure(name, [run_id], charts.View())["traces"] if spike in t["y"]
        )
        assert line["x"][line["y"].index(spike)] == at
        assert 300 < len(line["x"]) <= 1_000
        assert (line["x"][0], line["x"][-1]) == (1, STEPS)
