"""When “Set reward” is offered."""

from __future__ import annotations

from recorded import record_run, record_step

from grpo_core.store import Recorder
from grpo_core.types import Paused, Phase, PhaseStarted, RunStatus
from ui.tabs.reward_edit import refusal


def test_a_reward_is_set_only_where_the_run_takes_it(store, views):
    def why(run_id, ref):
        return refusal(views, views.run(run_id), ref)

    assert refusal(views, None, None) == "Choose a run first."
    ended = record_run(store)
    assert why(ended, (3, 0)) == "This run is finished: its rewards are final."

    run_id = record_run(store, status=RunStatus.RUNNING)
    assert why(run_id, (3, 0)).startswith("A reward can be set while the run waits before")
    with Recorder(store, run_id) as record:
        record(PhaseStarted(Phase.UPDATING, 3, 5))
        record(Paused("asked"))
        assert "waits before an update" in why(run_id, (3, 0))  # the update of step 3 has begun
        record(PhaseStarted(Phase.SCORING, 4, 5))
        record(Paused("stepped"))
        assert "waits before an update" in why(run_id, (3, 0))  # step 4 has no groups yet
        record_step(record, 4)
        with store.writing() as writer, writer.transaction() as db:
            db.execute("DELETE FROM steps WHERE run_id = ? AND step = 4", (run_id,))
            db.execute("UPDATE runs SET steps_done = 3 WHERE id = ?", (run_id,))
        assert why(run_id, (3, 0)) == "The run waits in step 4: show a group of that step."
        assert why(run_id, (4, 1)) == ""
    store.set_status(run_id, RunStatus.STOPPED)
