"""What the documents promise is so."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from make_metrics import metrics_page

from grpo_core.types import StepMetrics

ROOT = Path(__file__).parent.parent


def test_every_metric_has_its_line_in_the_metrics_page():
    page = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    assert page == metrics_page(), "run: python docs/make_metrics.py"
    for f in fields(StepMetrics):
        assert all(f.metadata[key] for key in ("title", "unit", "help", "reading")), f.name


def test_the_readme_is_short_and_its_tree_and_pictures_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 150
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / target).exists(), target
    tree = text.split("```text")[1].split("```")[0]
    for name in re.findall(r"^ {0,2}([\w./]+)(?=\s{2,})", tree, re.MULTILINE):
        inside = [
            ROOT / name.strip(),
            ROOT / "grpo_core" / name.strip(),
            ROOT / "ui" / name.strip(),
        ]
        assert any(p.exists() for p in inside), name


def test_the_readme_gives_the_two_commands_exactly_as_ci_runs_them():
    text = (ROOT / "README.md").read_text("utf-8")
    assert "pip install -r requirements.txt && python app.py" in text
    assert "pip install -r requirements.txt -r tests/requirements.txt && pytest" in text


def test_every_check_and_every_parameter_stands_in_the_graders_page():
    from grpo_core.rubric import CHECKS

    page = (ROOT / "docs" / "graders.md").read_text("utf-8")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(CHECKS)
    for name, check in CHECKS.items():
        assert all(f"`{p}`" in rows[name] for p in check.params.model_fields), name
        assert check.help in rows[name], name
