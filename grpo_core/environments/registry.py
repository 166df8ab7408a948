"""Environments by name: the built-in one, and the classes of files that the operator names.

The contract is TRL 1.16's: a class with `reset(**row) -> str | None`, whose public methods with
type hints and docstrings are tools, and perhaps `get_reward() -> float`. A file without such a
class gives its public functions as the tools of one environment.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_core.child_process import Child, ChildFailed, module_child
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError

START_SECONDS = 20.0
NONE = "none"  # no environment, even where the task has one
_CHILD = "grpo_core.environments.worker_child"


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment that can be used: its class's name, its file, its tools as JSON Schema."""

    name: str
    path: str
    tools: tuple[Mapping[str, Any], ...]
    has_reward: bool = False

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Tool -> its function's schema: name, description, parameters."""
        return {t["function"]["name"]: t["function"] for t in self.tools}


# What describing calculator.py gives; written out, because that takes a second.
_CALCULATE = {
    "name": "calculate",
    "description": "Work out an arithmetic expression with + - * / // % and brackets.",
    "parameters": {
        "type": "object",
        "properties": {
            "expression": {"type": "string", "description": 'The expression, such as "34*57".'}
        },
        "required": ["expression"],
    },
    "return": {"type": "string", "description": "The result."},
}
BUILT_IN = {
    "Calculator": Environment(
        "Calculator",
        str(Path(__file__).with_name("calculator.py")),
        ({"type": "function", "function": _CALCULATE},),
    )
}
_named: dict[str, Environment] = {}  # from files


def add_environments(paths: Sequence[str]) -> None:
    """Add the environments of these files. Call it once in a process, before one is used.

    Raises StudioError that names a file that cannot be used.
    """
    for path in paths:
        file = _python_file(path)
        try:
            found = describe(file)
        except ChildFailed as error:
            raise StudioError(
                f"--environments {path!r} cannot be used: {error}. "
                "Correct the file and start again."
            ) from None
        if not found:
            raise StudioError(
                f"--environments {path!r} defines no class with a method reset and no function. "
                "Write a class whose methods are tools."
            )
        for environment in found:
            name = environment.name
            taken = _named.get(name)
            if name in BUILT_IN or name == NONE or (taken and taken.path != environment.path):
                raise StudioError(
                    f"--environments {path!r}: there is another environment {name!r}. "
                    "Rename one of them."
                )
            _named[name] = environment


def known_environments() -> list[str]:
    """The names that `task.environment` may have."""
    return [*BUILT_IN, *_named]


def check_environment(name: str) -> None:
    """Raises InvalidConfig unless there is such an environment, or the name is empty or none."""
    if name not in ("", NONE, *known_environments()):
        hint = f"Known: {', '.join(known_environments())}. Name a file with --environments."
        problem = "there is no such environment"
        raise InvalidConfig([FieldProblem("task.environment", name, problem, hint)])


def find_environment(name: str) -> Environment:
    """Raises InvalidConfig if there is none of that name."""
    check_environment(name)
    return _named[name] if name in _named else BUILT_IN[name]


def named_environments() -> list[Environment]:
    """Those of files, for `use_environments` in another process."""
    return [*_named.values()]


def use_environments(environments: Sequence[Environment]) -> None:
    """Add environments that another process has described."""
    _named.update((e.name, e) for e in environments)


def worker(path: str, describes: bool = False) -> Child:
    """A process for instances of the environments of a file; it starts at the first request."""
    return module_child(_CHILD, path, str(START_SECONDS), "describe" if describes else "run")


def describe(file: Path) -> list[Environment]:
    """The environments of a file. Raises ChildFailed, which says why it cannot be used."""
    child = worker(str(file), describes=True)
    question = {"do": "describe", "arguments": [file.stem], "seconds": START_SECONDS}

    def read(answer: Any) -> list[Environment] | str:
        if "null" in answer:
            return str(answer["null"])
        return [_environment(name, file, found) for name, found in answer["value"].items()]

    try:
        found = child.request(question, START_SECONDS, read)
    finally:
        child.close()
    if isinstance(found, str):
        raise ChildFailed(found)
    return found


def _environment(name: str, file: Path, found: Mapping[str, Any]) -> Environment:
    """Raises ValueError for a name that could carry markup to a page or terminal."""
    tools = tuple(found["tools"])
    if not all(str.isidentifier(n) for n in (name, *(t["function"]["name"] for t in tools))):
        raise ValueError("no name")
    return Environment(name, str(file), tools, bool(found["has_reward"]))


def _python_file(path: str) -> Path:
    with contextlib.suppress(OSError, ValueError, RuntimeError):  # what odd paths raise
        file = Path(path).expanduser().resolve()
        if file.is_file() and file.suffix == ".py":
            return file
    raise StudioError(
        f"--environments {path!r} is not a Python file. Name one with a class that has reset."
    )
