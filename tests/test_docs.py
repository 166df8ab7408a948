"""What the documents promise is true."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from make_metrics import metrics_page

from grpo_core.types import StepMetrics

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
WITH_TREE = ["README.md", "CONTRIBUTING.md"]


def read(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def paths_in_tree(text: str) -> Iterator[str]:
    """Every path of the ```text tree; an indented line lies in the folder above it."""
    folder = ""
    for line in text.split("```text\n")[1].split("```")[0].splitlines():
        name = line.split()[0]
        indented = line.startswith(" ")
        yield folder + name if indented else name
        if not indented:
            folder = name


def anchor(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def test_every_metric_has_its_line_in_the_metrics_page():
    assert read("docs/metrics.md") == metrics_page(), "run: python docs/make_metrics.py"
    for f in fields(StepMetrics):
        assert all(f.metadata[key] for key in ("title", "unit", "help", "reading")), f.name


def test_the_readme_is_at_most_110_lines_with_one_picture():
    text = read("README.md")
    assert len(text.splitlines()) <= 110
    assert text.count("![") == 1


@pytest.mark.parametrize("name", WITH_TREE)
def test_every_path_of_a_tree_exists(name):
    paths = list(paths_in_tree(read(name)))
    assert len(paths) >= 7
    assert [p for p in paths if not (ROOT / p).exists()] == []


def test_the_map_names_every_package_and_module_of_the_core():
    listed = set(paths_in_tree(read("CONTRIBUTING.md")))
    core = ROOT / "grpo_core"
    packages = {f"grpo_core/{p.parent.name}/" for p in core.glob("*/__init__.py")}
    modules = {f"grpo_core/{p.name}" for p in core.glob("[!_]*.py")}
    assert packages | modules <= listed


def test_a_path_that_does_not_exist_is_found_in_a_tree():
    text = "```text\nui/   the page\n  no_such.py  a module\n```"
    assert list(paths_in_tree(text)) == ["ui/", "ui/no_such.py"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_relative_link_leads_somewhere(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text("utf-8")):
        path, _, fragment = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", there.read_text("utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), target


def test_the_readme_gives_the_two_commands_exactly_as_ci_runs_them():
    text = read("README.md")
    assert "pip install -r requirements.txt && python app.py" in text
    assert "pip install -r requirements.txt -r tests/requirements.txt && pytest" in text


def test_the_test_extra_of_the_package_is_the_list_that_ci_installs():
    lines = (line.split("#")[0].strip() for line in read("tests/requirements.txt").splitlines())
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert project["optional-dependencies"]["test"] == [line for line in lines if line]


def test_the_citation_has_the_version_of_the_package():
    from grpo_core import __version__

    assert f"\nversion: {__version__}\n" in read("CITATION.cff")
    assert f"Version {__version__}" in read("CHANGELOG.md") or f"## {__version__}" in read(
        "CHANGELOG.md"
    )


def test_every_public_name_of_the_core_can_be_imported():
    import grpo_core

    assert set(grpo_core.__all__) - {"__version__"} == set(grpo_core._EXPORTS)
    for name in grpo_core.__all__:
        assert getattr(grpo_core, name) is not None


def test_importing_the_core_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'gradio', 'pandas', 'pydantic'}"
    code = f"import sys, grpo_core; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_every_check_and_every_parameter_stands_in_the_graders_page():
    from grpo_core.rubric import CHECKS

    page = read("docs/graders.md")
    rows = {line.split("`")[1]: line for line in page.splitlines() if line.startswith("| `")}
    assert set(rows) == set(CHECKS)
    for name, check in CHECKS.items():
        assert all(f"`{p}`" in rows[name] for p in check.params.model_fields), name
        assert check.help in rows[name], name


def test_the_readme_counts_the_checks():
    from grpo_core.rubric import CHECKS

    assert f"[{len(CHECKS)} checks](docs/graders.md)" in read("README.md")
