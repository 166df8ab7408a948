"""The order of the packages, and what each may import, checked on the syntax trees."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up: a package imports itself and the packages before it.
ORDER = (
    "grpo_core.types", "grpo_core.errors", "grpo_core.hub_probe", "grpo_core.checkpoint_files",
    "grpo_core.time_limit", "grpo_core.child_process",
    "grpo_core.config", "grpo_core.store", "grpo_core.tasks", "grpo_core.models",
    "grpo_core.rollout", "grpo_core.rubric", "grpo_core.environments", "grpo_core.learner",
    "grpo_core.training", "grpo_core.cluster", "grpo_core.analysis", "grpo_core.preferences",
    "grpo_core.records", "grpo_core.runs",
    "grpo_core.exporting", "grpo_core.preflight", "grpo_core.cli", "grpo_core.__main__",
    "ui.render", "ui.components", "ui.server", "ui.tabs", "ui.page", "app",
)  # fmt: skip
PUBLIC = {
    "grpo_core",
    "ui",
}  # the public packages: they import their exports lazily

HEAVY = {"torch", "transformers", "ray", "gradio", "plotly", "pandas", "sqlite3", "sqlite_utils"}
# package or module -> what of HEAVY it may import, at module level or inside functions
ALLOWED: dict[str, set[str]] = {
    "grpo_core/store": {"sqlite3", "sqlite_utils", "pandas"},
    "grpo_core/models": {"torch", "transformers"},
    "grpo_core/rollout": {"torch", "transformers"},
    "grpo_core/rubric/reward_model.py": {"torch"},
    "grpo_core/environments/trajectories.py": {"torch"},
    "grpo_core/learner": {"torch"},
    "grpo_core/training": {"torch"},
    "grpo_core/training/control.py": set(),
    "grpo_core/training/breakpoints.py": set(),
    "grpo_core/training/timing.py": set(),
    "grpo_core/training/distant.py": set(),
    "grpo_core/cluster": {"ray"},
    "grpo_core/cluster/address.py": set(),
    "grpo_core/cluster/mailbox.py": set(),
    "grpo_core/cluster/driver.py": set(),
    "grpo_core/analysis/token_loss.py": {"torch"},
    "grpo_core/preferences/bradley_terry.py": {"torch"},
    "grpo_core/preferences/reward_training.py": {"torch"},
    "grpo_core/analysis/walk_picture.py": {"torch"},
    "grpo_core/runs/doctor.py": {"sqlite3"},
    "grpo_core/exporting/answers.py": {"torch"},
    "grpo_core/records/attach.py": {"transformers"},
    "grpo_core/exporting/trained_model.py": {"torch", "transformers"},
    "grpo_core/preflight/service.py": {"torch"},
    "grpo_core/preflight/playground.py": {"torch"},
    "grpo_core/preflight/model_report.py": {"transformers"},
    "grpo_core/preflight/room.py": {"torch"},
    "ui": {"gradio"},
    "ui/render": set(),
    "ui/render/charts": {"plotly", "pandas"},
    "ui/components/live_chart.py": {"gradio", "plotly"},
}
# The page reaches models only through the service that app.py hands in: it starts without torch.
NOT_FOR_THE_PAGE = tuple(
    f"grpo_core.{name}"
    for name in (
        "models", "rollout", "learner", "training.trainer", "training.scoring",
        "training.rollout_batch", "training.checkpoint", "preferences.reward_training", "preflight",
        "exporting.answers", "exporting.trained_model",
    )
)  # fmt: skip


def sources() -> list[Path]:
    return sorted(p for folder in ("grpo_core", "ui") for p in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {name_of(path): path for path in [*sources(), ROOT / "app.py"]}


def imports(path: Path) -> Iterator[str]:
    """Every imported name: plain, inside functions, and under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{path}: relative import"
            yield from (
                whole if (whole := f"{node.module}.{a.name}") in MODULES else node.module
                for a in node.names
            )


def floor(module: str) -> int | None:
    """A module's index in ORDER; None for third-party modules and for public packages."""
    return next((i for i, p in enumerate(ORDER) if module == p or module.startswith(p + ".")), None)


def upward(module: str, imported: Iterator[str]) -> list[str]:
    here = floor(module)
    above = (
        []
        if here is None
        else [n for n in imported if (there := floor(n)) is not None and there > here]
    )
    outside = [n for n in above if n.startswith("ui")] if module in PUBLIC else above
    return outside


@pytest.mark.parametrize("module", MODULES)
def test_no_package_imports_one_above_it(module):
    assert upward(module, imports(MODULES[module])) == []
    assert floor(module) is not None or module in PUBLIC


@pytest.mark.parametrize(
    "code",
    [
        "from grpo_core.training.trainer import train",
        "def late():\n    import grpo_core.training.trainer",
        "if TYPE_CHECKING:\n    from grpo_core.training import trainer",
    ],
    ids=["plain", "lazy", "TYPE_CHECKING"],
)
def test_an_upward_import_of_any_kind_is_found(code, tmp_path):
    (tmp_path / "module.py").write_text(code)
    assert len(upward("grpo_core.learner.update", imports(tmp_path / "module.py"))) == 1


def test_no_two_modules_import_each_other_by_any_way_round():
    edges = {m: {n for n in imports(p) if n in MODULES and n != m} for m, p in MODULES.items()}
    edges |= {package: set() for package in PUBLIC}

    def reach(start: str) -> set[str]:
        seen, todo = set(), [start]
        while todo:
            for there in edges[todo.pop()] - seen:
                seen.add(there)
                todo.append(there)
        return seen

    assert [m for m in MODULES if m in reach(m)] == []


def test_the_library_imports_neither_benchmarks_nor_scripts_nor_tests():
    outside = ("benchmarks", "scripts", "tests", "docs")
    found = {m: [n for n in imports(p) if n.split(".")[0] in outside] for m, p in MODULES.items()}
    assert {m: names for m, names in found.items() if names} == {}


def test_at_most_six_modules_lie_flat_in_the_core():
    assert len([p for p in (ROOT / "grpo_core").glob("*.py") if not p.name.startswith("__")]) <= 6


def allowed(path: Path) -> set[str]:
    name = path.relative_to(ROOT).as_posix()
    prefixes = (p for p in ALLOWED if name == p or name.startswith(p + "/"))
    best = max(prefixes, key=len, default=None)
    return ALLOWED[best] if best else set()


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_a_module_imports_only_the_heavy_packages_it_may(path):
    heavy = {name.split(".")[0] for name in imports(path)} & HEAVY
    assert heavy <= allowed(path)


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("ui")])
def test_the_page_reaches_no_model_and_no_trainer(module):
    assert not any(n.startswith(NOT_FOR_THE_PAGE) for n in imports(MODULES[module]))


def test_the_trainer_knows_neither_store_nor_page():
    known = set(imports(ROOT / "grpo_core" / "training" / "trainer.py"))
    assert not any(n.startswith(("grpo_core.store", "grpo_core.runs", "ui")) for n in known)


@pytest.mark.parametrize("path", MODULES.values(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_no_page_hands_foreign_text_to_something_that_interprets_it(path):
    unsafe = (
        r'sanitize_html\s*=\s*False|datatype\s*=\s*"html"|'
        r"trust_remote_code\s*=\s*True|gr\.(State|Chatbot)\("
    )
    assert not re.search(unsafe, path.read_text("utf-8"))


def test_test_files_of_different_folders_have_different_names():
    """pytest imports a file by its name alone, unless its folder is a package."""
    files = [
        p for p in (ROOT / "tests").rglob("test_*.py") if not (p.parent / "__init__.py").exists()
    ]
    assert len({p.name for p in files}) == len(files)
