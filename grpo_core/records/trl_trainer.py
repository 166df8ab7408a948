"""Reads a GRPOTrainer of TRL or Unsloth: its settings, and what it made in its last generation.

TRL keeps the texts, scores and advantages of a generation in `_logs` (`_textual_logs` before 0.20)
and returns the tensors. Nothing of the trainer is changed, and the tensors are copied.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_core.records.record import SourceRun
from grpo_core.records.trl_groups import ANSWERS, LOGPROBS, Generation, Reader, Rewards
from grpo_core.types import GroupKind

TENSORS = ("prompt_ids", "completion_ids", "completion_mask", "tool_mask", *LOGPROBS.values())
LOGS = ("prompt", "completion", "advantages")
SECRET = ("token", "secret", "password", "api_key")


class _Noted(deque[Any]):
    """A log of the trainer that knows what came last as a whole, even if it holds less."""

    newest: Sequence[Any] = ()

    def extend(self, values: Iterable[Any]) -> None:
        self.newest = list(values)
        super().extend(self.newest)


def note_logs(trainer: Any) -> None:
    """From now on the trainer's logs know what came last. For the trainer they are as before."""
    logs = _logs(trainer)
    for log, names in ((logs, LOGS), (logs["rewards"], trainer.reward_func_names)):
        log.update({name: _Noted(log[name], log[name].maxlen) for name in names})


def _logs(trainer: Any) -> Any:
    return getattr(trainer, "_logs", None) or trainer._textual_logs


def generation_of(
    trainer: Any, inputs: Any, prompts: Sequence[Any], made: Mapping[str, Any]
) -> Generation:
    """A copy of what the trainer made last. Its logs have the rows of all processes in order."""
    trains, logs = bool(trainer.model.training), _logs(trainer)
    shown = logs["prompt"].newest
    if len(shown) == len(prompts) and type(shown[0]) is not type(prompts[0]):
        shown = prompts  # older versions log the rendered template
    size = trainer.num_generations
    if not trains:
        size = getattr(trainer, "num_generations_eval", None) or size
    return Generation(
        step=trainer.state.global_step + trains,
        kind=GroupKind.TRAINING if trains else GroupKind.EVALUATION,
        group_size=size,
        prompts=shown,
        completions=logs["completion"].newest,
        answers=[_answer(row) for row in inputs],
        scores=list(
            zip(*(logs["rewards"][name].newest for name in trainer.reward_func_names), strict=True)
        ),
        advantages=logs["advantages"].newest,
        tensors={
            name: values.detach().to("cpu", copy=True)
            for name in TENSORS
            if (values := made.get(name)) is not None
        },
    )


def copied(prompt: Any) -> Any:
    """TRL 0.18 removes the last message of a prompt that opens the answer."""
    return list(prompt) if isinstance(prompt, list) else prompt


def _answer(row: Mapping[str, Any]) -> str | None:
    value = next((row[name] for name in ANSWERS if row.get(name) is not None), None)
    return str(value) if isinstance(value, str | int | float) else None


# ---- what is known before the first step -----------------------------------------------------


def source_run(trainer: Any, name: str | None, key: str) -> SourceRun:
    args, model, rewards = trainer.args, trainer.model, rewards_of(trainer)
    source = getattr(model.config, "_name_or_path", "") or type(model).__name__
    steps = trainer.state.max_steps or args.max_steps
    settings = {
        "model": source,
        "reward_functions": list(rewards.names),
        **{k: v for k, v in args.to_dict().items() if _is_shown(k, v)},
        "reward_weights": dict(zip(rewards.names, rewards.weights, strict=True)),
    }
    return SourceRun(
        trainer=_title(trainer),
        format="attach",
        key=key,
        name=name or args.run_name or f"{source.rstrip('/').split('/')[-1]}, {_title(trainer)}",
        settings=settings,
        num_steps=steps if steps > 0 else None,
    )


def _is_shown(name: str, value: Any) -> bool:
    is_plain = isinstance(value, str | int | float | bool) and value != ""
    return is_plain and not any(word in name for word in SECRET)


def _title(trainer: Any) -> str:
    version = getattr(sys.modules.get("trl"), "__version__", "")
    title = f"TRL {version}".strip()
    is_unsloth = any(
        "unsloth" in f"{c.__module__}.{c.__name__}".lower() for c in type(trainer).__mro__
    )
    return f"Unsloth, {title}" if is_unsloth else title


def rewards_of(trainer: Any) -> Rewards:
    return Rewards(
        names=list(trainer.reward_func_names),
        weights=[float(w) for w in trainer.reward_weights.tolist()],
    )


def reader_of(trainer: Any) -> Reader:
    tokenizer = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    ends = getattr(trainer, "eos_token_ids", None) or [tokenizer.eos_token_id]
    return Reader(
        piece=functools.cache(_vocabulary().Vocabulary(tokenizer).piece),
        pad_id=tokenizer.pad_token_id,
        end_ids=frozenset(ends),
        special_ids=frozenset(tokenizer.all_special_ids),
        max_tokens=trainer.max_completion_length,
    )


def _vocabulary() -> Any:
    """The module that knows the bytes of a token; alone where TRL needs an older transformers.

    The package around it, which loads models, needs transformers 5.
    """
    try:
        return importlib.import_module("grpo_core.models.vocabulary")
    except ImportError:
        core = importlib.import_module("grpo_core")
        file = Path(str(core.__file__)).parent / "models" / "vocabulary.py"
        spec = importlib.util.spec_from_file_location("grpo_studio_vocabulary", file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
