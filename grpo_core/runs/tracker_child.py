"""The process of one experiment tracker: it imports the tracker's package and talks to it.

A tracker may hang, print, exit or change global state; none of that reaches the run. `Mirror` in
mirror.py asks: start, log, groups, finish. Each class writes with the package's own means.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from grpo_core.child_process import serve

PROJECT = "grpo-studio"
# Of addresses: the servers that trackers start reserve much more than they use.
MAX_MEMORY = 1 << 42

Rows = Sequence[Mapping[str, Any]]  # a completion a row: mirror.py makes them
Metrics = Mapping[str, float]


class Tracker(Protocol):
    """place: where a person finds the run."""

    place: str

    def __init__(self, run: Mapping[str, Any]): ...
    def log(self, step: int, metrics: Metrics) -> None: ...
    def groups(self, step: int, rows: Rows) -> None: ...
    def finish(self, status: str) -> None: ...


class Trackio:
    """Groups as traces, with the metadata that TRL gives its own."""

    def __init__(self, run: Mapping[str, Any]):
        self._trackio = import_module("trackio")
        project = os.environ.get("TRACKIO_PROJECT", PROJECT)
        self._run = self._trackio.init(
            project=project,
            name=f"{run['name']} ({run['id']})",
            config=dict(run["config"]),
            resume="allow",
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        self.place = f"trackio show --project {project}"

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def groups(self, step: int, rows: Rows) -> None:
        traces: dict[str, list[Any]] = {}
        for row in rows:
            chat = [*row["before"], {"role": "user", "content": row["prompt"]}]
            metadata = {
                "group_id": row["group"],
                "verdict": row["verdict"],
                "reward": row["reward"],
                "advantage": row["advantage"],
                "completion_tokens": row["tokens"],
                **{f"rewards/{name}": score for name, score in row["scores"].items()},
            }
            trace = self._trackio.Trace(
                messages=[*chat, {"role": "assistant", "content": row["completion"]}],
                metadata={k: v for k, v in metadata.items() if v is not None},
            )
            traces.setdefault(row["kind"], []).append(trace)
        self._run.log(traces, step=step)

    def finish(self, status: str) -> None:
        self._run.finish()


class Wandb:
    """Groups as one table a step. Steps may come again, when a run is resumed."""

    def __init__(self, run: Mapping[str, Any]):
        self._wandb = import_module("wandb")
        self._run = self._wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=run["id"],
            name=run["name"],
            config=dict(run["config"]),
            resume="allow",
            settings=self._wandb.Settings(console="off", silent=True, x_disable_stats=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")
        self.place = self._run.url or f"wandb sync {Path(self._run.dir).parent}"

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log({"step": step, **metrics})

    def groups(self, step: int, rows: Rows) -> None:
        for kind, of_kind in _by_kind(rows):
            table = _columns(of_kind)
            data = list(zip(*table.values(), strict=True))
            named = self._wandb.Table(columns=list(table), data=[list(row) for row in data])
            self._run.log({"step": step, kind: named})

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=0 if status == "finished" else 1)


class Tensorboard:
    """Groups as a Markdown table of the text plug-in."""

    def __init__(self, run: Mapping[str, Any]):
        writer = import_module("tensorboard.summary.writer.event_file_writer")
        self._events = import_module("tensorboard.compat.proto.event_pb2")
        self._summary = import_module("tensorboard.compat.proto.summary_pb2")
        self._text = import_module("tensorboard.plugins.text.metadata")
        self._tensor = import_module("tensorboard.util.tensor_util")
        root: str = os.environ.get("TENSORBOARD_LOGGING_DIR") or run["folder"]
        folder = Path(root, run["id"])
        self._writer = writer.EventFileWriter(str(folder))
        self.place = f"tensorboard --logdir {root}"
        lines = [f"| {_cell(k)} | {_cell(v)} |" for k, v in run["config"].items()]
        self._add_text(0, "config", "\n".join(["| field | value |", "| --- | --- |", *lines]))

    def log(self, step: int, metrics: Metrics) -> None:
        values = [
            self._summary.Summary.Value(tag=name, simple_value=value)
            for name, value in metrics.items()
        ]
        self._add(step, values)

    def groups(self, step: int, rows: Rows) -> None:
        for kind, of_kind in _by_kind(rows):
            table = _columns(of_kind)
            lines = [
                f"| {' | '.join(map(_cell, row))} |" for row in zip(*table.values(), strict=True)
            ]
            head = [f"| {' | '.join(map(_cell, table))} |", f"|{' --- |' * len(table)}"]
            self._add_text(step, kind, "\n".join([*head, *lines]))

    def _add_text(self, step: int, tag: str, text: str) -> None:
        value = self._summary.Summary.Value(
            tag=tag,
            metadata=self._text.create_summary_metadata(display_name=tag, description=""),
            tensor=self._tensor.make_tensor_proto([text.encode("utf-8", "replace")]),
        )
        self._add(step, [value])

    def _add(self, step: int, values: Sequence[Any]) -> None:
        summary = self._summary.Summary(value=values)
        self._writer.add_event(
            self._events.Event(wall_time=time.time(), step=step, summary=summary)
        )
        self._writer.flush()

    def finish(self, status: str) -> None:
        self._writer.close()


class Mlflow:
    """Groups as one table artifact a step. A resumed run goes on in its run of before."""

    def __init__(self, run: Mapping[str, Any]):
        mlflow = import_module("mlflow")
        self._entities = import_module("mlflow.entities")
        self._client = mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self._client.create_experiment(name)
        tag = "grpo_studio.run"
        earlier = self._client.search_runs([experiment], f"tags.`{tag}` = '{run['id']}'")
        if earlier:
            self._id = earlier[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
        else:
            made = self._client.create_run(experiment, run_name=run["name"], tags={tag: run["id"]})
            self._id = made.info.run_id
            values = [self._entities.Param(k, str(v)[:500]) for k, v in run["config"].items()]
            for i in range(0, len(values), 100):  # the most that a server takes at once
                self._client.log_batch(self._id, params=values[i : i + 100])
        self.place = f"{mlflow.get_tracking_uri()}, experiment {name}"

    def log(self, step: int, metrics: Metrics) -> None:
        now = int(time.time() * 1000)
        values = [
            self._entities.Metric(re.sub(r"[^\w\-./ :]", "_", name), value, now, step)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._id, metrics=values)

    def groups(self, step: int, rows: Rows) -> None:
        for kind, of_kind in _by_kind(rows):
            self._client.log_table(self._id, _columns(of_kind), f"{kind}/step_{step:06}.json")

    def finish(self, status: str) -> None:
        named = {"finished": "FINISHED", "stopped": "KILLED"}
        self._client.set_terminated(self._id, named.get(status, "FAILED"))


# By package, which is also what pip installs.
TRACKERS: Mapping[str, type[Tracker]] = {
    "trackio": Trackio,
    "wandb": Wandb,
    "tensorboard": Tensorboard,
    "mlflow": Mlflow,
}


def _by_kind(rows: Rows) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    for kind in dict.fromkeys(row["kind"] for row in rows):
        yield kind, [row for row in rows if row["kind"] == kind]


def _columns(rows: Rows) -> dict[str, list[Any]]:
    """A table by columns, with one for each criterion."""
    names = dict.fromkeys(name for row in rows for name in row["scores"])
    plain = ("group", "verdict", "prompt", "completion", "reward", "advantage", "tokens")
    return {name: [row[name] for row in rows] for name in plain} | {
        f"score/{name}": [row["scores"].get(name) for row in rows] for name in names
    }


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ⏎ ")


def main(name: str) -> None:
    """Answer until the input ends; a run whose process was killed then counts as failed."""
    trackers: list[Tracker] = []

    def start(run: Mapping[str, Any]) -> str:
        trackers.append(TRACKERS[name](run))
        return trackers[0].place

    def finish(status: str) -> None:
        trackers.pop().finish(status)

    serve(
        {
            "start": start,
            "log": lambda step, metrics: trackers[0].log(step, metrics),
            "groups": lambda step, rows: trackers[0].groups(step, rows),
            "finish": finish,
        },
        MAX_MEMORY,
    )
    if trackers:
        finish("failed")


if __name__ == "__main__":
    main(sys.argv[1])
