"""The process that holds the instances of an environment; started as a module with its file.

It locks itself up before the first line of the file runs, as the process of a plug-in file does.
Its instances share the process and its libraries. Each has the file's names for itself: the file
runs anew for it. A function of a library that an instance replaces is put back.
"""

from __future__ import annotations

import builtins
import importlib
import inspect
import math
import os
import random
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from grpo_core.child_process import ONE_THREAD, NoValue, end_with_parent, serve
from grpo_core.rubric.sandbox.locked_file import LockedFile

MAX_MEMORY = 2 << 30
MAX_RESULT_CHARS = 20_000  # of a tool's result; a longer one is an error
MODULE = "environments"
CANNOT = "write files, use the network or start processes"


class Worker:
    """An environment file and the instances made of its classes, by a number."""

    def __init__(self, path: str) -> None:
        self._file = LockedFile(path, "An environment", CANNOT, ONE_THREAD)
        self._classes: dict[str, type] = {}
        self._functions: dict[str, Callable[..., Any]] = {}
        self._instances: dict[int, Any] = {}
        self._libraries: dict[types.ModuleType, dict[str, Any]] = {}  # their functions and classes

    def load(self, seconds: float, imports: Sequence[str] = ()) -> None:
        """Import these packages, lock up this process, then run the file.

        Raises NoValue, which says why it failed.
        """
        for name in imports:
            importlib.import_module(name)
        module = self._file.load(MODULE, seconds, MAX_MEMORY)
        own = {
            name: value
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == MODULE
        }
        classes = {n: c for n, c in own.items() if inspect.isclass(c)}
        self._classes = {n: c for n, c in classes.items() if callable(getattr(c, "reset", None))}
        if not self._classes:
            self._functions = {n: f for n, f in own.items() if inspect.isfunction(f)}
        imported = [v for v in vars(module).values() if isinstance(v, types.ModuleType)]
        for library in (builtins, *imported):
            self._libraries[library] = {
                n: v for n, v in vars(library).items() if not n.startswith("_") and callable(v)
            }

    def describe(self, functions_name: str) -> dict[str, Any]:
        """The environments of the file: their tools as JSON Schema, and whether they give a reward.

        functions_name: of the environment that plain functions make together.
        """
        found = {n: (_methods(c), hasattr(c, "get_reward")) for n, c in self._classes.items()}
        if self._functions:
            found[functions_name] = (self._functions, False)
        return {
            name: {"tools": [self._schema(n, t) for n, t in tools.items()], "has_reward": rewards}
            for name, (tools, rewards) in found.items()
        }

    def _schema(self, name: str, tool: Callable[..., Any]) -> dict[str, Any]:
        utils = importlib.import_module("transformers.utils.chat_template_utils")
        try:
            return utils.get_json_schema(tool)
        except Exception as error:
            hint = "Give each parameter a type and a line under Args: in the docstring"
            raise NoValue(f"the tool {name} cannot be described: {error} {hint}") from None

    def forget(self) -> None:
        """Delete all instances."""
        self._instances.clear()

    def reset(self, number: int, makes: str, row: dict[str, Any], seed: int) -> str | None:
        """Make an instance; what is added to its prompt. makes: see Environment."""
        _seed(seed)
        name, _, argument = makes.partition(":")
        self._instances.pop(number, None)
        module = self._run(self._file.run, {"module_name": MODULE})
        instance, text = module, None
        if name in self._classes:
            instance = self._run(getattr(module, name), {"name": argument} if argument else {})
            text = self._run(instance.reset, row)
        if text is not None and not isinstance(text, str):
            raise NoValue(f"reset returned {type(text).__name__}, not a text or None")
        self._instances[number] = instance
        return None if text is None else _bounded(text)

    def call(self, number: int, tool: str, arguments: dict[str, Any], seed: int) -> str:
        """What a tool of an instance answers."""
        _seed(seed)
        value = self._run(getattr(self._instances[number], tool), arguments)
        return _bounded(value if isinstance(value, str) else self._run(str, {"object": value}))

    def _run(self, function: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """What a function of the file returns. Raises NoValue, also if it replaced a library's."""
        try:
            return self._file.call(function, arguments)
        finally:
            self._put_back()

    def _put_back(self) -> None:
        """Undo what was replaced in a library, which other instances use too."""
        replaced = []
        for library, known in self._libraries.items():
            names = vars(library)
            replaced += [
                f"{library.__name__}.{n}" for n, v in known.items() if names.get(n) is not v
            ]
            if replaced:
                names.update(known)
        if replaced:
            raise NoValue(f"it replaced {replaced[0]}, which others use. That was undone")

    def reward(self, number: int, seed: int) -> float:
        """What the instance's get_reward returns."""
        _seed(seed)
        value = self._run(self._instances[number].get_reward, {})
        try:
            reward = float(value)
        except (TypeError, ValueError, OverflowError):
            reward = math.nan
        if not math.isfinite(reward):
            raise NoValue(f"get_reward returned {type(value).__name__}, not a finite number")
        return reward


def _methods(kind: type) -> dict[str, Callable[..., Any]]:
    """The public methods of a class, which are its tools."""
    return {
        name: method
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if not name.startswith("_") and name not in ("reset", "get_reward")
    }


def _bounded(text: str) -> str:
    if len(text) > MAX_RESULT_CHARS:
        raise NoValue(
            f"its result has {len(text):,} characters; at most {MAX_RESULT_CHARS:,} are read"
        )
    return text.encode("utf-8", "replace").decode()


def _seed(seed: int) -> None:
    """A tool that draws random numbers answers the same when the step is repeated."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed % 2**32)


def main(path: str, seconds: float, describes: bool, imports: Sequence[str]) -> None:
    """Answer questions about the file until the input ends.

    describes: import what makes schemas first, which a locked process could not. imports: other
    packages to import first.
    """
    # A thread from before the lock would stay outside it, so there may be none.
    os.environ.update(ONE_THREAD)
    if describes:
        importlib.import_module("transformers.utils.chat_template_utils")
    end_with_parent()  # a tool that ignores its limit must not outlive a run that was killed
    worker = Worker(path)
    functions: Mapping[str, Callable[..., Any]] = {
        "describe": worker.describe,
        "forget": worker.forget,
        "reset": worker.reset,
        "call": worker.call,
        "reward": worker.reward,
    }
    serve(functions, MAX_MEMORY, lambda: worker.load(seconds, imports))


if __name__ == "__main__":
    main(
        sys.argv[1],
        float(sys.argv[2]),
        sys.argv[3] == "describe",
        [*filter(None, sys.argv[4].split(","))],
    )
