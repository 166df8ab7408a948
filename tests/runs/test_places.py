"""Names that mean something else when opened than when judged: a list of them, on every field."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from grpo_core.config import ModelConfig, nest, parse
from grpo_core.config.places import ROOTS_VARIABLE, is_hub_name, local_path
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.models import check_model, load_classifier, load_policy
from grpo_core.rubric.reward_model import RewardModelParams
from grpo_core.runs.limits import Limits
from grpo_core.tasks import load_task

# Around the path of something outside of the allowed folders.
DRESSES = {
    "plain": "{path}",
    "blank before": " {path}",
    "blanks around": "  {path}  ",
    "tab": "\t{path}",
    "new line": "\n{path}\n",
    "return": "\r{path}",
    "no-break space": "\xa0{path}",
    "em space": "\u2003{path}",
    "ideographic space": "\u3000{path}",
    "next line": "\x85{path}",
    "separator": "\x1f{path}",
    "dots": "{inside}/../outside/{name}",
    "blank and dots": " {inside}/../outside/{name}",
    "doubled": "//{path}",
    "dot": "{folder}/./{name}",
    "dots of the folder": "../outside/{name}",
    "dot and dots": "./../outside/{name}",
    "blank and relative": "\t../outside/{name}",
    "home": "~/outside/{name}",
    "blank and home": "\xa0~/outside/{name}",
    "link": "{inside}/link/{name}",
    "relative link": "link/{name}",
    "blank and relative link": " link/{name}",
    "trailing slash and dots": "{inside}/x/../../outside/{name}",
}
FIELDS = {
    "model.name": lambda name: {"model.name": name},
    "task.path": lambda name: {"task.name": "file", "task.path": name},
    "task.heldout_source": lambda name: {
        "task.name": "file",
        "task.path": "openai/gsm8k",
        "task.heldout_source": name,
    },
    "task.second": lambda name: {"task.second": name},
    "rubric.criteria.0.params.model": lambda name: {
        "rubric.criteria": [
            {"name": "m", "check": "reward_model", "weight": 1, "params": {"model": name}}
        ]
    },
}


@pytest.fixture
def outside(tiny_model, tmp_path, monkeypatch) -> Path:
    """A folder with a model and prompts, beside the allowed one, which is the current one."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    (inside / "x").mkdir(parents=True)
    shutil.copytree(tiny_model, outside / "model")
    rows = "".join(f"{i}+{i}?,{2 * i}\n" for i in range(30))
    (outside / "p.csv").write_text(f"question,answer\n{rows}")
    (inside / "link").symlink_to(outside)
    monkeypatch.chdir(inside)
    monkeypatch.setenv("HOME", str(tmp_path))
    return outside


def dressed(dress: str, target: Path) -> str:
    inside = target.parents[1] / "inside"
    parts = {"path": target, "inside": inside, "folder": target.parent, "name": target.name}
    return DRESSES[dress].format(**parts)


def judged(limits: Limits, settings: dict) -> set[str]:
    try:
        limits.check(parse(nest(settings)))
    except InvalidConfig as error:
        return {p.field for p in error.problems}
    return set()


@pytest.mark.parametrize("dress", DRESSES)
@pytest.mark.parametrize("field", FIELDS)
def test_no_dress_of_a_path_passes_the_check(outside, field, dress):
    target = outside / ("p.csv" if field.startswith("task") else "model")
    settings = FIELDS[field](dressed(dress, target))
    assert judged(Limits(roots=(outside.parent / "inside",)), settings) == {field}
    assert judged(Limits(roots=(outside,)), settings) == set()  # the same, where it is allowed


@pytest.mark.parametrize("dress", DRESSES)
def test_every_dress_opens_what_was_judged(outside, dress, monkeypatch):
    name = dressed(dress, outside / "model")
    config = parse(nest({"model.name": name})).model
    assert local_path(config.name) == outside / "model"
    assert local_path(RewardModelParams(model=name).model) == outside / "model"
    check_model(config)
    prompts = parse(nest(FIELDS["task.path"](dressed(dress, outside / "p.csv"))))
    assert len(load_task(prompts.task).table.train) > 10
    # A second guard: what opens a path asks for the allowed folders too.
    monkeypatch.setenv(ROOTS_VARIABLE, str(outside.parent / "inside"))
    with pytest.raises(InvalidConfig, match="does not read files there"):
        check_model(config)
    with pytest.raises(StudioError, match="does not read files there"):
        load_classifier(name)
    with pytest.raises(InvalidConfig):
        load_task(prompts.task)


@pytest.mark.parametrize(
    "name",
    ["~nobody-of-this-name/x", "/a\0b", "\0", "x" * 500, "/" + "x/" * 250, "loop", "~"],
)
def test_a_name_that_cannot_be_resolved_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.symlink("loop", "loop")
    for loader in (check_model, lambda c: load_policy(c, 0, torch.device("cpu"))):
        with pytest.raises(InvalidConfig) as caught:
            loader(ModelConfig(name=name))
        assert "\n" not in str(caught.value)
    with pytest.raises(StudioError) as caught:
        load_classifier(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["Qwen/Qwen3-0.6B", " Qwen/Qwen3-0.6B\n", "gpt2", "bundled"])
def test_names_of_the_hub_and_of_built_in_models_pass_the_check(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert judged(Limits(roots=(tmp_path / "inside",)), {"model.name": name}) == set()
    assert is_hub_name(name)
    assert parse(nest({"model.name": name})).model.name == name.strip()


def test_the_offered_models_are_compared_without_blanks():
    limits = Limits(models=("bundled", "owner/small"))
    assert judged(limits, {"model.name": "\xa0owner/small "}) == set()
    assert judged(limits, {"model.name": "./owner/small"}) == {"model.name"}


@pytest.mark.parametrize("revision", ["../../x", "/etc/passwd", "..", "a b", "-x", "x\0"])
def test_a_revision_is_no_path(revision, monkeypatch):
    config = ModelConfig(name="owner/name", revision=revision)
    with pytest.raises(InvalidConfig, match="is not a revision"):
        check_model(config)


def test_an_empty_name_of_a_reward_model_is_one_line():
    with pytest.raises(StudioError, match="no model is named"):
        load_classifier(RewardModelParams(model=" \t").model)
