"""Parcels: they come out as they went in, and wrong ones name the place that is wrong."""

from __future__ import annotations

import gzip
from array import array

import orjson
import pytest

from grpo_core.errors import InvalidConfig
from grpo_core.records import parcels
from grpo_core.records.parcels import Finish, Parcel, TooLarge, pack, read, unzip, without_tokens
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep
from grpo_core.types import RunStatus

RUN = SourceRun(trainer="TRL 1.16.0", format="attach", key="k", name="mine", num_steps=9)


def step(**rollout) -> SourceStep:
    group = SourceGroup(prompt="1+1", rollouts=[SourceRollout(text="2", **rollout)])
    return SourceStep(step=1, groups=[group], metrics={"kl": 0.5}, pieces={7: b"a", 8: b"\xe2"})


def test_a_parcel_comes_out_as_it_went_in():
    logprobs = array("f", [-0.1, -1e-7])
    made = step(token_ids=array("i", [7, 8]), logprobs=logprobs, scores={"right": None})
    events = [("step", made), ("progress", 4), ("finish", Finish(RunStatus.FAILED, "why"))]
    got = read(unzip(pack(Parcel(RUN, events))))
    assert got.run == RUN
    assert got.events[1:] == events[1:]
    [rollout] = got.events[0][1].groups[0].rollouts
    assert array("f", rollout.logprobs) == logprobs  # bit by bit, as float32
    assert list(rollout.token_ids) == [7, 8]
    assert rollout.scores == {"right": None}
    pieces = got.events[0][1].pieces
    assert {k: v.encode() if isinstance(v, str) else v for k, v in pieces.items()} == made.pieces


def test_without_tokens_the_texts_and_scores_stay():
    parcel = Parcel(RUN, [("step", step(token_ids=[7], reward=1.0)), ("progress", 1)])
    small = without_tokens(parcel)
    [rollout] = small.events[0][1].groups[0].rollouts
    assert (rollout.text, rollout.reward, rollout.token_ids) == ("2", 1.0, None)
    assert small.events[1] == ("progress", 1)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"events": [{"step": {"step": "x"}}]}, "events.0.step.step"),
        ({"events": [{"progress": 1}, {"progress": -1}]}, "events.1.progress"),
        ({"events": [{"progress": True}]}, "events.0.progress"),
        ({"events": [{"finish": {"status": "running"}}]}, "events.0.finish.status"),
        ({"events": [{"finish": {"status": "failed", "error": 1}}]}, "events.0.finish.error"),
        ({"events": [{"step": {"step": 1}, "progress": 1}]}, "events.0"),
        ({"events": [{"delete": 1}]}, "events.0"),
        ({"events": {}}, "events"),
        ({"run": {"trainer": "TRL"}}, "run.format"),
        ({"more": 1}, "body"),
    ],
)
def test_a_wrong_parcel_names_the_place(change, place):
    plain = orjson.loads(unzip(pack(Parcel(RUN, [])))) | change
    with pytest.raises(InvalidConfig) as error:
        read(orjson.dumps(plain))
    assert place in [p.field for p in error.value.problems]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"run": NaN}', b"[" * 100_000])
def test_a_body_that_is_no_parcel_is_refused(body):
    with pytest.raises(InvalidConfig, match="body"):
        read(body)


def test_a_gzip_is_opened_only_as_far_as_allowed():
    bomb = gzip.compress(b"0" * 50_000_000)
    assert len(bomb) < 50_000
    with pytest.raises(TooLarge, match="at most"):
        unzip(bomb)
    assert unzip(gzip.compress(b"[]")) == b"[]"
    for broken in (b"", b"no gzip", gzip.compress(b"x" * 999)[:-9]):
        with pytest.raises(InvalidConfig, match="gzip"):
            unzip(broken)


def test_a_parcel_above_the_limit_is_not_sent(monkeypatch):
    monkeypatch.setattr(parcels, "MAX_BYTES", 500)
    pack(Parcel(RUN, []))
    with pytest.raises(TooLarge):
        pack(Parcel(RUN, [("step", step(token_ids=array("i", range(500))))]))
