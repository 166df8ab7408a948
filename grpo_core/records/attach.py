"""Record a run of TRL's or Unsloth's GRPOTrainer: one line before `trainer.train()`.

    from grpo_core import attach
    attach(trainer, db="runs/grpo.sqlite")  # or url="http://host:7860", token=…

The trainer's results are copied and handed to a thread; nothing is computed, drawn or changed, so
the weights are bitwise those of the run without it. If recording fails, training goes on.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import os
import traceback
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
from transformers import TrainerCallback

from grpo_core.errors import StudioError
from grpo_core.records.outbox import Outbox
from grpo_core.records.parcels import Finish
from grpo_core.records.sinks import FileSink, ServerSink, Sink
from grpo_core.records.trl_events import Events, StepMetrics
from grpo_core.records.trl_metrics import NewValues
from grpo_core.records.trl_trainer import (
    copied,
    generation_of,
    note_logs,
    reader_of,
    rewards_of,
    source_run,
)
from grpo_core.types import RunStatus

TOKEN_VARIABLE = "GRPO_INGEST_TOKEN"
GENERATE = "_generate_and_score_completions"
log = logging.getLogger("grpo_studio")
FOLDER = "grpo-studio"  # in the trainer's output_dir: its run's key, and what waits to be sent


def attach(
    trainer: Any,
    db: str | os.PathLike[str] | None = None,
    url: str | None = None,
    token: str | None = None,
    name: str | None = None,
) -> None:
    """Record what `trainer` trains, from the next `train()` on.

    db: an SQLite file of GRPO Studio. url, token: a server started with --ingest-token; without
    token the variable GRPO_INGEST_TOKEN counts. name: of the run. With several processes call it
    in all of them; the first one records. Raises StudioError for a wrong argument, nothing later.
    """
    if not hasattr(trainer, GENERATE):
        raise StudioError(
            f"trainer is a {type(trainer).__name__}, which makes no groups of completions. "
            "attach() records GRPOTrainer of TRL 0.18 or newer, and Unsloth's."
        )
    if hasattr(trainer, "_grpo_studio"):
        raise StudioError("This trainer is attached already. Attach it once.")
    if (db is None) == (url is None):
        raise StudioError("Give either db, a file, or url, a server's address.")
    if not trainer.accelerator.is_main_process:
        return
    sink: Sink
    if db is not None:
        _check_writing()
        sink = FileSink(os.fspath(db))
    else:
        sink = ServerSink(str(url), token or os.environ.get(TOKEN_VARIABLE, ""))
    trainer._grpo_studio = _Attached(trainer, sink, name)


def _check_writing() -> None:
    """What is recorded is compared with our own arithmetic, which needs this transformers."""
    try:
        importlib.import_module("grpo_core.training.scoring")
    except ImportError as error:
        raise StudioError(
            f"db cannot be written beside transformers {transformers.__version__}: {error}. "
            "Start a server in an environment of its own, python app.py --ingest-token TOKEN, "
            "and give url and token here instead."
        ) from None


class _Attached(TrainerCallback):
    """Hooks in one trainer. All of its methods run in the trainer's thread and are short."""

    def __init__(self, trainer: Any, sink: Sink, name: str | None):
        self._trainer, self._sink, self._name = trainer, sink, name
        self._folder = Path(trainer.args.output_dir or ".") / FOLDER
        self._outbox: Outbox | None = None
        self._told = False  # a fault of ours
        self._values = NewValues()
        self._pending: StepMetrics | None = None  # of the step that is being logged
        note_logs(trainer)
        self._wrap(GENERATE, self._generate)
        self._wrap("train", self._train)
        trainer.add_callback(self)

    def _wrap(self, name: str, around: Callable[..., Any]) -> None:
        """Put `around(original, …)` in place of one of the trainer's methods."""
        original = getattr(self._trainer, name)
        setattr(self._trainer, name, functools.wraps(original)(functools.partial(around, original)))

    def _guarded(self, work: Callable[[], object]) -> None:
        """Recording must never end a training."""
        try:
            work()
        except Exception as error:
            if not self._told:
                self._told = True
                text = "GRPO Studio: recording failed: %s: %s. Training goes on."
                log.warning(text, type(error).__name__, error)

    # ---- the trainer's methods ---------------------------------------------------------------

    def _train(self, original: Callable[..., Any], *args: Any, **options: Any) -> Any:
        ended = Finish(RunStatus.FINISHED)
        try:
            return original(*args, **options)
        except KeyboardInterrupt:
            ended = Finish(RunStatus.STOPPED, "KeyboardInterrupt")
            raise
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
            ended = Finish(RunStatus.FAILED, f"{text}\n\n{traceback.format_exc()}")
            raise
        finally:
            self._guarded(lambda: self._end(ended))

    def _generate(
        self, original: Callable[..., Any], inputs: Any, *args: Any, **options: Any
    ) -> Any:
        prompts = [copied(row.get("prompt")) for row in inputs]
        made = original(inputs, *args, **options)
        self._guarded(lambda: self._keep(inputs, prompts, made))
        return made

    # ---- callbacks ---------------------------------------------------------------------------

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._guarded(lambda: self._begin(resumed=state.global_step > 0))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._guarded(lambda: self._step_ended(state.global_step, control.should_log))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self._guarded(lambda: self._logged(state.global_step, dict(logs or {})))

    # ---- what is put into the queue ----------------------------------------------------------

    def _begin(self, resumed: bool) -> None:
        if self._outbox is None:
            run = source_run(self._trainer, self._name, _key(self._folder, resumed))
            events = Events(rewards_of(self._trainer), reader_of(self._trainer))
            self._outbox = Outbox(run, self._sink, self._folder, events)

    def _end(self, ended: Finish) -> None:
        self._begin(resumed=False)  # it may have failed before its first step
        assert self._outbox is not None
        self._flush()
        self._outbox.put(ended)
        self._outbox.close()
        self._outbox, self._values = None, NewValues()

    def _step_ended(self, step: int, is_logged: bool) -> None:
        """The metrics of this step alone: a log has the means since the log before it."""
        self._flush()
        self._pending = StepMetrics(step, self._values.take(self._trainer._metrics["train"]))
        if not is_logged:
            self._flush()

    def _logged(self, step: int, logs: dict[str, Any]) -> None:
        if any(name.startswith("eval_") for name in logs):
            self._put(StepMetrics(step, logs))
            return
        known = set(self._trainer._metrics["train"])
        more = {k: v for k, v in logs.items() if k not in known}
        waiting, self._pending = self._pending, None
        self._put(StepMetrics(step, {**(waiting.values if waiting else {}), **more}))
        self._values.cleared()

    def _flush(self) -> None:
        if self._pending is not None:
            self._put(self._pending)
            self._pending = None

    def _put(self, item: Any, num_bytes: int = 0) -> None:
        if self._outbox is not None:
            self._outbox.put(item, num_bytes)

    def _keep(self, inputs: Any, prompts: Sequence[Any], made: Mapping[str, Any]) -> None:
        self._begin(resumed=False)
        generation = generation_of(self._trainer, inputs, prompts, made)
        self._put(generation, generation.num_bytes)


def _key(folder: Path, resumed: bool) -> str:
    """Of this run; a training that goes on from its checkpoint has the key it had before."""
    file = folder / "run"
    with contextlib.suppress(OSError):
        if resumed and (key := file.read_text("ascii").strip()):
            return key
    key = uuid.uuid4().hex
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(key, "ascii")
    return key
