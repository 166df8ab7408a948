"""verifiers 0.4 and prime-rl: `traces.jsonl`, an episode a line.

An episode has its task, its group, its run, and a trace for each agent; a trace has weighted
rewards and its messages as nodes of a tree, each with the tokens that it added. A branch of the
tree is a sample, and all branches of a trace are one outcome: the last branch is read.

prime-rl writes `rollouts/step_{N}/{train,eval}/{all,effective}/traces.jsonl`: `effective` is what
was trained on, `all` has also what was dropped, such as tied groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from grpo_core.records.formats.chats import answered, asked, role
from grpo_core.records.formats.rows import (
    Row,
    by_key,
    first_row,
    found,
    group_of,
    in_parts,
    number,
    numbers,
    one_value,
    rows,
    settings_at,
    text,
    token_ids,
    whole,
)
from grpo_core.records.record import SourceGroup, SourceRollout, SourceRun, SourceStep

STEP_FOLDER = re.compile(r"step_(\d{1,12})")
CUT = (
    "max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "compaction_failed",
)  # fmt: skip
ANSWERS = ("answer", "ground_truth", "solution", "target")
LATER = 1 << 20  # the parts of what was dropped come after those of what was trained on


def files(path: Path) -> list[Path]:
    return found(path, "traces.jsonl", *(f"{p}step_*/*/*/traces.jsonl" for p in ("", "rollouts/")))


def finds(path: Path) -> bool:
    row = first_row(files(path))
    return isinstance(row.get("task"), dict) and bool(_traces(row))


def read(path: Path) -> Iterator[SourceRun | SourceStep]:
    """The run and its steps. Raises StudioError."""
    place = path.resolve()
    folder = place.parent if place.is_file() else place
    paths = files(path)
    first = first_row(paths)
    run = _dict(first.get("run"))
    trace = _traces(first)[0] if _traces(first) else {}
    version = _dict(trace.get("verifiers")).get("version")
    is_training = any(STEP_FOLDER.fullmatch(part) for f in paths for part in f.parts)
    maker = "prime-rl, verifiers" if is_training else "verifiers"
    weights = {k: _dict(r).get("weight", 1.0) for k, r in _dict(trace.get("rewards")).items()}
    resolved = folder / "configs" / "resolved"
    yield SourceRun(
        trainer=f"{maker} {version}" if version else maker,
        format="verifiers",
        key=f"verifiers:{run.get('id') or place}",
        name=text(run.get("name") or run.get("id")) or place.stem,
        settings={**settings_at(*found(resolved, "*.json")), "reward_weights": weights},
    )
    yield from _steps(paths, folder)


def _steps(paths: Sequence[Path], folder: Path) -> Iterator[SourceStep]:
    """First what was trained on or evaluated, then what was sampled and dropped."""
    trained = [f for f in paths if f.parent.name != "all" or not _effective(f).exists()]
    if any(f.parent.name == "effective" for f in paths):  # a step that has none goes on
        trained = [f for f in trained if f.parts[-3:-1] != ("train", "all")]
    seen = set[str]()
    metrics = _metrics(folder)
    yield from in_parts((g for f in trained for g in _groups(f, seen, keep=True)), metrics)
    dropped = [f for f in paths if f.parent.name == "all" and _effective(f).exists()]
    for step in in_parts(g for f in dropped for g in _groups(f, seen, keep=False)):
        yield replace(step, part=LATER + step.part)


def _effective(path: Path) -> Path:
    return path.parent.parent / "effective" / path.name


def _metrics(folder: Path) -> dict[int, dict[str, float]]:
    """The curves that prime-rl writes beside its rollouts."""
    names = {"optim/lr": "learning_rate", "optim/grad_norm": "grad_norm", "loss/mean": "loss"}
    names["entropy/all/mean"] = "entropy"
    found: dict[int, dict[str, float]] = {}
    path = folder / "metrics.jsonl"
    for row in islice(rows(path), 100_000) if path.is_file() else ():
        if (step := whole(row.pop("step", None))) is not None:
            known = {names.get(k, k): v for k, v in row.items() if k != "time"}
            values = {k: n for k, v in known.items() if (n := number(v)) is not None}
            found.setdefault(step, {}).update(values)
    return found


def _groups(file: Path, seen: set[str], keep: bool) -> Iterator[tuple[int, SourceGroup]]:
    """The groups of a file without the episodes that were seen before; one for each agent."""
    folder = next((m for part in file.parts if (m := STEP_FOLDER.fullmatch(part))), None)

    def key(row: Row) -> tuple[int, bool, str] | None:
        task = _dict(row.get("task"))
        if not task:
            return None
        run = _dict(row.get("run"))
        work = _dict(run.get("work"))
        step = int(folder[1]) if folder else whole(work.get("step"))
        is_evaluation = "eval" in (run.get("type"), work.get("type"), file.parent.parent.name)
        group = _dict(row.get("group")).get("id") or task.get("key") or task.get("hash")
        return step or 0, is_evaluation, text(group or task.get("data"))

    for episodes in by_key(file, key):
        found_key = key(episodes[0])
        assert found_key is not None
        step, is_evaluation, _ = found_key
        fresh = [e for e in episodes if text(e.get("id")) not in seen or not e.get("id")]
        if keep:
            seen.update(text(e.get("id")) for e in fresh)
        by_agent: dict[str, list[Row]] = {}
        for trace in (t for e in fresh for t in _traces(e)):
            if (agent := _dict(trace.get("agent"))).get("trainable") is not False:
                by_agent.setdefault(text(agent.get("name")), []).append(trace)
        for traces in by_agent.values():
            if group := _group(traces, _dict(episodes[0]["task"]), is_evaluation):
                yield step, group


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _traces(episode: Row) -> list[Row]:
    """The traces of an episode; a line may also be one trace."""
    if isinstance(episode.get("nodes"), list):
        return [episode]
    traces = episode.get("traces")
    return [t for t in traces if isinstance(t, dict)] if isinstance(traces, list) else []


def _group(traces: Sequence[Row], task: Row, is_evaluation: bool) -> SourceGroup | None:
    paths = [_branch(trace) for trace in traces]
    written = [(t, nodes) for t, nodes in zip(traces, paths, strict=True) if nodes]
    if not written:
        return None
    data = _dict(task.get("data"))
    answer = next((data[name] for name in ANSWERS if data.get(name) is not None), None)
    nodes = written[0][1]
    chat = [_dict(node.get("message")) for node in nodes[: _first(nodes)]]
    prompt = asked(chat or data.get("prompt"))
    return group_of(prompt, [_rollout(t, n) for t, n in written], answer, is_evaluation)


def _branch(trace: Row) -> list[Row]:
    """The messages from the root to the last one that the policy wrote, or to the last of all."""
    given = trace.get("nodes")
    nodes = [_dict(node) for node in given] if isinstance(given, list) else []
    at = next((i for i in reversed(range(len(nodes))) if nodes[i].get("sampled") is True), None)
    at = len(nodes) - 1 if at is None else at
    path = list[int]()
    while isinstance(at, int) and 0 <= at < len(nodes) and at not in path:
        path.append(at)
        at = nodes[at].get("parent")
    return [nodes[i] for i in reversed(path)]


def _first(nodes: Sequence[Row]) -> int:
    """The place of the first message that the policy wrote."""
    return next((i for i, node in enumerate(nodes) if node.get("sampled") is True), len(nodes))


def _rollout(trace: Row, nodes: Sequence[Row]) -> SourceRollout:
    nodes = nodes[_first(nodes) :]
    tokens = _Tokens(nodes)
    answer = answered([_dict(node.get("message")) for node in nodes], tokens.spans)
    rewards = {k: _dict(r) for k, r in _dict(trace.get("rewards")).items()}
    given = {k: number(r.get("score")) for k, r in rewards.items()}
    parts = [
        score * (1.0 if (w := number(rewards[k].get("weight"))) is None else w)
        for k, score in given.items()
        if score is not None
    ]
    credit = tokens.spread("advantages")
    return SourceRollout(
        text=answer.text,
        turns=answer.turns,
        finish_reason=_finish(trace) if nodes else None,
        scores=given,
        reward=sum(parts) if parts else None,
        advantage=one_value(credit) if credit else None,
        num_tokens=sum(tokens.mask)
        if tokens.ids
        else whole(trace.get("num_output_tokens")) or None,
        token_ids=tokens.ids or None,
        action_mask=tokens.mask if tokens.ids and not all(tokens.mask) else None,
        sampling_logprobs=tokens.spread("logprobs"),
        logprobs=tokens.spread("trainer_logprobs"),
        ref_logprobs=tokens.spread("reference_logprobs"),
        entropy=tokens.spread("entropies"),
    )


def _finish(trace: Row) -> str | None:
    calls = trace.get("calls")
    reasons = [_dict(c).get("finish_reason") for c in calls] if isinstance(calls, list) else []
    last = next((r for r in reversed(reasons) if r is not None), None)
    if trace.get("stop_condition") in CUT or last == "length":
        return "length"
    return "stop" if last or trace.get("is_completed") is True else None


class _Tokens:
    """The tokens from the first that the policy wrote on; all empty if a message has none.

    mask: false for what the template and the tools added. spans: of each message. What a template
    writes before an action belongs to the observation before it.
    """

    def __init__(self, nodes: Sequence[Mapping[str, Any]]):
        self._nodes = nodes
        self.ids, self.mask = list[int](), list[bool]()
        self.spans = list[tuple[int, int]]()
        for node in nodes:
            ids, mask = token_ids(node.get("token_ids")), node.get("mask")
            if ids is None or not isinstance(mask, list) or len(mask) != len(ids):
                self.ids, self.mask, self.spans = [], [], []
                return
            written = [m is True for m in mask]
            is_action = role(_dict(node.get("message"))) == "assistant" and any(written)
            begin = written.index(True) if is_action else 0
            if self.spans:
                first, count = self.spans[-1]
                self.spans[-1] = (first, count + begin)
                self.ids += ids[:begin]
                self.mask += written[:begin]
            self.spans.append((len(self.ids), len(ids) - begin))
            self.ids += ids[begin:]
            self.mask += written[begin:]

    def spread(self, name: str) -> list[float] | None:
        """A value for each token: the file has them for those that the policy wrote."""
        if not self.ids:
            return None
        written = list[float]()
        for node in self._nodes:
            count = sum(m is True for m in node["mask"])
            values = numbers(node.get(name), count) if count else []
            if values is None:
                if node.get(name):
                    return None  # of another length: it cannot be told which token has which
                values = [float("nan")] * count
            written += values
        if all(v != v for v in written):
            return None
        values = iter(written)
        return [next(values) if m else float("nan") for m in self.mask]
