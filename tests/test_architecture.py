"""The import table of the architecture, and what it forbids, held by walking the syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "transformers", "gradio", "plotly", "pandas", "sqlite3", "sqlite_utils"}

# package or module -> what of HEAVY it may import at module level or inside functions
ALLOWED: dict[str, set[str]] = {
    "grpo_core/types.py": set(), "grpo_core/config.py": set(), "grpo_core/errors.py": set(), "grpo_core/control.py": set(),
    "grpo_core/__main__.py": set(), "grpo_core/cli": set(), "grpo_core/doctor.py": {"sqlite3"}, "grpo_core/runs.py": set(),
    "grpo_core/store": {"sqlite3", "sqlite_utils", "pandas"}, "grpo_core/tasks": set(), "grpo_core/rubric": set(), "grpo_core/rubric/reward_model.py": {"torch"},
    "grpo_core/learner": {"torch"}, "grpo_core/policy": {"torch", "transformers"}, "grpo_core/rollout": {"torch", "transformers"},
    "grpo_core/token_terms.py": {"torch"}, "grpo_core/scoring.py": {"torch"}, "grpo_core/checkpoint.py": {"torch"}, "grpo_core/draw.py": {"torch"}, "grpo_core/trainer.py": {"torch"}, "grpo_core/desk.py": {"torch"}, "grpo_core/trained.py": {"torch", "transformers"},
    "ui": {"gradio"}, "ui/charts.py": {"plotly", "pandas"}, "ui/live_chart.py": {"gradio", "plotly"},
}


def sources() -> list[Path]:
    return sorted(p for folder in ("grpo_core", "ui") for p in (ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def allowed(path: Path) -> set[str]:
    name = path.relative_to(ROOT).as_posix()
    best = max((prefix for prefix in ALLOWED if name == prefix or name.startswith(prefix + "/")), key=len, default=None)
    return ALLOWED[best] if best else set()


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_only_what_its_place_in_the_house_allows(path):
    heavy = {name.split(".")[0] for name in imports(path)} & HEAVY
    assert heavy <= allowed(path)


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_core_never_imports_the_page_and_the_page_never_the_trainer(path):
    names = set(imports(path))
    if path.is_relative_to(ROOT / "grpo_core"):
        assert not any(n == "ui" or n.startswith("ui.") for n in names)
    else:
        forbidden = ("grpo_core.trainer", "grpo_core.learner", "grpo_core.policy", "grpo_core.rollout", "grpo_core.scoring", "grpo_core.desk", "grpo_core.fit", "grpo_core.lending", "grpo_core.preflight", "grpo_core.trained")
        assert not any(n.startswith(forbidden) for n in names)


def test_the_trainer_knows_neither_store_nor_page():
    assert not any(n.startswith(("grpo_core.store", "grpo_core.runs", "ui")) for n in imports(ROOT / "grpo_core" / "trainer.py"))


@pytest.mark.parametrize("path", [*sources(), ROOT / "app.py"], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_page_hands_foreign_text_to_something_that_interprets_it(path):
    text = path.read_text("utf-8")
    assert not re.search(r'sanitize_html\s*=\s*False|datatype\s*=\s*"html"|trust_remote_code\s*=\s*True|gr\.(State|Chatbot)\(', text)
