"""Steps of another trainer for tests: four rewards 1, 0, 1, 1 and what they give."""

from __future__ import annotations

import math
from typing import Any

from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep

REWARDS = (1.0, 0.0, 1.0, 1.0)
# mean 3/4, sample std 1/2: (1 - 3/4)/(1/2 + 1e-4) and (0 - 3/4)/(1/2 + 1e-4)
GROUP_STD = (0.25 / 0.5001, -0.75 / 0.5001, 0.25 / 0.5001, 0.25 / 0.5001)
GROUP_MEAN = (0.25, -0.75, 0.25, 0.25)
LEAVE_ONE_OUT = (1 / 3, -1.0, 1 / 3, 1 / 3)


def run(key: str = "a run", **more: Any) -> SourceRun:
    return SourceRun(
        **{"trainer": "TRL 1.16.0", "format": "trl", "key": key, "name": "theirs", **more}
    )


def group(prompt: str = "2+2=", advantages: Any = None, **more: Any) -> SourceGroup:
    own = advantages or [None] * 4
    rollouts = [
        SourceRollout(text=f"{prompt}{i}", scores={"correct": r}, advantage=a)
        for i, (r, a) in enumerate(zip(REWARDS, own, strict=True))
    ]
    return SourceGroup(prompt=prompt, rollouts=rollouts, **more)


def step(number: int = 1, *groups: SourceGroup, **more: Any) -> SourceStep:
    return SourceStep(step=number, groups=groups or (group(),), **more)


def as_float32(values: Any) -> list[float]:
    import struct

    return [struct.unpack("f", struct.pack("f", v))[0] for v in values]


NAN = math.nan
