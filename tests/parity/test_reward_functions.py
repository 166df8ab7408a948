"""The same reward function as a plug-in file here, and through TRL's own trainer code."""

from __future__ import annotations

import asyncio
import importlib
import json
import math
import threading
from types import SimpleNamespace

import pytest
from loops import in_thread

from grpo_core.config import TaskConfig
from grpo_core.rubric import Notes, RunState
from grpo_core.rubric.sandbox.plugins import load_plugins
from grpo_core.tasks import load_task, train_prompts
from grpo_core.types import Completion

pytestmark = pytest.mark.slow  # TRL takes seconds to import

FILE = """
from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass, field

import numpy


@dataclass
class Part:
    weight: float
    words: list[str] = field(default_factory=list)


def _text(completion):
    return completion if isinstance(completion, str) else completion[0]["content"]


def right(completions, solution, **kwargs):
    return [float(s in _text(c)) for c, s in zip(completions, solution)]


def by_level(prompts, completions, completion_ids, level, **kwargs):
    return [n * (len(_text(c)) + len(i)) for c, i, n in zip(completions, completion_ids, level)]


def roles(prompts, completions, **kwargs):
    def one(p, c):
        if isinstance(p, str):
            return float(isinstance(c, str))
        return 10.0 * len(p) + (p[-1]["role"] == "user") + (c[0]["role"] == "assistant") + len(c)
    return [one(p, c) for p, c in zip(prompts, completions)]


def schedule(completions, trainer_state, **kwargs):
    return [trainer_state.global_step / trainer_state.max_steps] * len(completions)


def logs(completions, log_extra=None, log_metric=None, **kwargs):
    log_extra("length", [len(c) for c in completions])
    log_metric("mean_length", 3.0)
    return [1.0] * len(completions)


async def later(completions, **kwargs):
    async def one(c):
        await asyncio.sleep(0.001 * len(_text(c)))
        return await asyncio.to_thread(len, _text(c))
    return await asyncio.gather(*(one(c) for c in completions))


def own_loop(completions, **kwargs):
    return asyncio.run(later(completions))


def partly(completions, solution, **kwargs):
    return [None if s == "5" else 0.25 for s in solution]


def array(completions, **kwargs):
    return numpy.array([len(_text(c)) / 3 for c in completions])


def parts(completions, **kwargs):
    made = [Part(0.5, _text(c).split()) for c in completions]
    return (p.weight * len(p.words) for p in made)


def flags(completions, **kwargs):
    return [len(_text(c)) > 4 for c in completions]


def located(completions, **kwargs):
    return [float(os.path.basename(__file__) == "mine.py")] * len(completions)


if __name__ == "__main__":
    raise SystemExit("this is a module")
"""
NAMES = [
    name
    for line in FILE.splitlines()
    if line.startswith(("def ", "async def "))
    and (name := line.split("def ")[1].split("(")[0])[0] != "_"
]
STATE = SimpleNamespace(global_step=3, max_steps=12)
TEXTS = ("it is 5", "six", "6 6 6")
IDS = ([1, 2, 3], [4], [5, 6])


def trls(function, rows, prompts, completions):
    """The rewards by TRL's trainer, as a list; None where TRL has nan."""
    from trl import GRPOTrainer

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu", is_main_process=True),
        args=SimpleNamespace(report_to=[]),
        async_loop=loop,
        environments=None,
        reward_funcs=[function],
        reward_func_names=["f"],
        reward_processing_classes=[None],
        state=STATE,
        _log_completion_extra=lambda column, values: None,
        _log_metric=lambda name, value: None,
    )
    calculate = GRPOTrainer._calculate_rewards
    found = in_thread(calculate, trainer, rows, prompts, completions, list(IDS))
    loop.call_soon_threadsafe(loop.stop)
    return [None if math.isnan(value) else value for value in found[:, 0].tolist()]


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The functions of the file as they are, and as checks."""
    file = tmp_path_factory.mktemp("plug-in") / "mine.py"
    file.write_text(FILE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        module = importlib.import_module(file.stem)
    return module, load_plugins([str(file)])


@pytest.mark.parametrize("kind", ["plain", "chat"])
@pytest.mark.parametrize("name", NAMES)
def test_a_plug_in_gives_what_trl_gives(mine, tmp_path, monkeypatch, kind, name):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path))
    questions = [("2+3?", "5", 1), ("3+3?", "6", 2), ("6-0?", "6", 3)]
    column = "question"
    rows = [{"question": q, "solution": a, "level": n} for q, a, n in questions]
    completions = list(TEXTS)
    if kind == "chat":
        column = "messages"
        system = {"role": "system", "content": "Be brief."}
        rows = [
            {"messages": [system, {"role": "user", "content": q}], "solution": a, "level": n}
            for q, a, n in questions
        ]
        completions = [[{"role": "assistant", "content": text}] for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = load_task(
        TaskConfig(
            name="file",
            path=str(tmp_path / "rows.jsonl"),
            prompt_column=column,
            answer_column="solution",
            heldout_size=0,
        )
    )
    by_level = {p.meta["columns"]["level"]: p for p in train_prompts(task, 0, 1, 3)}
    prompts = [by_level[n] for _, _, n in questions]

    module, checks = mine
    theirs = trls(getattr(module, name), rows, [row[column] for row in rows], completions)
    check, notes = checks[f"mine.{name}"], Notes(run=RunState(IDS, 3, 12))
    given = [Completion(text, "stop", len(ids)) for text, ids in zip(TEXTS, IDS, strict=True)]
    ours = check.scores(given, prompts, check.params(), notes)
    assert ours == [None if value is None else pytest.approx(value) for value in theirs], notes
    assert not notes
