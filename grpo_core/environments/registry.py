"""Environments by name: the built-in one, games of TextArena, and what the operator names.

The contract is TRL 1.16's: a class with `reset(**row) -> str | None`, whose public methods with
type hints and docstrings are tools, and perhaps `get_reward() -> float`. A file without such a
class gives its public functions as the tools of one environment. The operator also names servers
of OpenEnv; nobody else can, so no visitor makes this machine call an address.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpo_core.child_process import Child, ChildFailed, module_child
from grpo_core.environments import games, openenv
from grpo_core.environments.environment import FILE_HELPER, Environment
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.tasks.columns import NO_ENVIRONMENT

if TYPE_CHECKING:
    from grpo_core.tasks.table import PromptTable

START_SECONDS = 20.0


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
    """Add the environments of these files, and servers as openenv:URL or openenv:URL,VARIABLE.

    Call it once in a process, before one is used. Raises StudioError that names a file or server
    that cannot be used.
    """
    for path in paths:
        if path.startswith(openenv.PREFIX):
            server = openenv.server(path)
            _named[server.name] = server
            continue
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
            if (
                name in BUILT_IN
                or name == NO_ENVIRONMENT
                or (taken and taken.path != environment.path)
            ):
                raise StudioError(
                    f"--environments {path!r}: there is another environment {name!r}. "
                    "Rename one of them."
                )
            _named[name] = environment


def known_environments() -> list[str]:
    """The names that `task.environment` may have, but for games whose package is missing."""
    names = games.GAMES if games.is_installed() else ()
    return [*BUILT_IN, *_named, *(f"{games.PREFIX}{name}" for name in names)]


def check_environment(name: str) -> None:
    """Raises InvalidConfig unless there is such an environment, or the name is empty or none."""
    if name not in ("", NO_ENVIRONMENT):
        find_environment(name)


def check_rows(table: PromptTable | None) -> None:
    """Raises InvalidConfig unless there are all environments that rows of a table name."""
    for name, row in (table.environments if table is not None else {}).items():
        try:
            check_environment(name)
        except InvalidConfig as error:
            [problem] = error.problems
            said = f"row {row:,}, column 'environment' names {name!r:.100}: {problem.problem}"
            hint = f"{problem.hint} Or set task.environment to none, and no row has one."
            raise InvalidConfig([FieldProblem("task.path", name, said, hint)]) from None


def find_environment(name: str) -> Environment:
    """Raises InvalidConfig if there is none of that name."""
    if name.startswith(games.PREFIX):
        return games.game(name)
    known = {**BUILT_IN, **_named}
    if name in known:
        return known[name]
    names = ", ".join(known)
    hint = f"Known: {names}, and textarena:GAME. Name a file with --environments."
    problem = "there is no such environment"
    if name.startswith(openenv.PREFIX):
        problem = "the operator did not name this server"
        hint = f"Start with --environments {openenv.PREFIX}URL. Known: {names}."
    raise InvalidConfig([FieldProblem("task.environment", name, problem, hint)])


def named_environments() -> list[Environment]:
    """Those of files and servers, for `use_environments` in another process."""
    return [*_named.values()]


def use_environments(environments: Sequence[Environment]) -> None:
    """Add environments that another process has described."""
    _named.update((e.name, e) for e in environments)


def worker(environment: Environment) -> Child:
    """A process for instances of an environment; it starts at the first request."""
    if environment.helper == openenv.HELPER:
        return openenv.worker(environment.path, environment.token_variable)
    imports = ",".join(environment.imports)
    return module_child(environment.helper, environment.path, str(START_SECONDS), "run", imports)


def describe(file: Path) -> list[Environment]:
    """The environments of a file. Raises ChildFailed, which says why it cannot be used."""
    child = module_child(FILE_HELPER, str(file), str(START_SECONDS), "describe", "")
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
