"""Before step 1: preflight, probes, expected ties, pass@k, with real steps on small models."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import pytest
import torch
from pretended_cards import pretend_cards

from grpo_core.config import Criterion, ModelConfig, RubricConfig, nest, parse
from grpo_core.config.devices import VARIABLE
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.preflight.preflight import Finding, FirstStep, findings, first_step, refusal, verdict
from grpo_core.preflight.service import PreflightService, ServiceOptions
from grpo_core.rubric import build_rubric
from grpo_core.rubric.predict import mean_interval, pass_at, tied_share
from grpo_core.rubric.probes import probe
from grpo_core.training.evaluation import passes
from grpo_core.types import Prompt

PROMPT = Prompt("p", "Q: 12+30+44=?", "86", "sums")


def rubric(*criteria: dict):
    return build_rubric(
        RubricConfig(criteria=tuple(Criterion(**{"weight": 1, **c}) for c in criteria))
    )


# ---- pass@k and ties -----------------------------------------------------------------------------


def test_pass_at_k_equals_counting_all_draws():
    # 2 of 5 are right. Of the 10 pairs, the 3 of the other three have no right one: 1 - 3/10.
    assert pass_at(2, 2, 5) == pytest.approx(0.7)
    for n, k in ((5, 1), (6, 3), (4, 4)):
        for right in range(n + 1):
            tries = [True] * right + [False] * (n - right)
            counted = [any(c) for c in itertools.combinations(tries, k)]
            assert pass_at(k, right, n) == pytest.approx(sum(counted) / len(counted))


def test_accuracy_intervals_are_wilsons_or_have_prompts_as_units():
    one = passes([[True]] * 45 + [[False]] * 155)
    assert (one["accuracy"], one["accuracy_low"]) == (0.225, pytest.approx(0.1725, abs=2e-4))
    several = passes([[True, True, False, False], [False] * 4])
    # pass@1: (1/2 + 0)/2; pass@2: (1 - 1/6 + 0)/2 = 5/12; pass@4: (1 + 0)/2
    assert [several[k] for k in ("accuracy", "pass@2", "pass@4")] == pytest.approx(
        [0.25, 5 / 12, 0.5]
    )
    assert several["accuracy_low"] == 0.0
    assert passes([]) == {}


def test_the_interval_of_a_mean_covers_the_truth_at_95_percent():
    rng = random.Random(0)
    covered = 0
    for _ in range(400):
        rates = [rng.random() for _ in range(100)]  # the true mean is 1/2
        _, low, high = mean_interval(rates)
        covered += low <= 0.5 <= high
    assert 360 <= covered <= 398  # 380 expected, sd 4.4


def test_the_expected_share_of_ties_equals_counting_all_subgroups():
    rewards = [0, 0, 0, 1, 1, 2]
    for size in (2, 3, 4):
        counted = [len(set(c)) == 1 for c in itertools.combinations(rewards, size)]
        assert tied_share([rewards], size) == pytest.approx(sum(counted) / len(counted))
    assert tied_share([[1, 1], [0, 1]], 4) == pytest.approx(
        (1 + 2 / 16) / 2
    )  # beyond the sample: 1, and (1/2)^4 twice
    assert tied_share([[None, None]], 2) is None


def test_evaluation_with_several_tries_and_greedy(tiny_settings):
    from grpo_core.training.control import RunControl
    from grpo_core.training.trainer import train
    from grpo_core.types import Evaluated

    def evaluated(**more):
        events = []
        train(
            parse(nest({**tiny_settings, "train.steps": 1, "train.checkpoint_every": 0, **more})),
            events.append,
            RunControl(),
        )
        return [e.metrics for e in events if isinstance(e, Evaluated)]

    first = evaluated(**{"train.eval_samples": 4})[0]
    assert {"heldout/accuracy", "heldout/pass@2", "heldout/pass@4_high"} <= set(first)
    greedy = evaluated(**{"train.eval_mode": "greedy"})
    assert greedy[0]["heldout/completion_tokens"] is not None
    with pytest.raises(
        InvalidConfig, match=r"train\.eval_samples = 4: all greedy answers to a prompt are equal"
    ):
        parse(nest({"train.eval_samples": 4, "train.eval_mode": "greedy"}))


def test_a_second_task_is_evaluated_beside_and_changes_nothing_else(tiny_settings, tmp_path):
    from grpo_core.runs.limits import Limits
    from grpo_core.training.control import RunControl
    from grpo_core.training.trainer import train
    from grpo_core.types import Evaluated, StepCompleted

    def said(**more):
        events = []
        train(
            parse(
                nest(
                    {
                        **tiny_settings,
                        "train.steps": 1,
                        "train.checkpoint_every": 0,
                        "train.eval_samples": 2,
                        **more,
                    }
                )
            ),
            events.append,
            RunControl(),
        )
        return [e.metrics for e in events if isinstance(e, Evaluated)], [
            e.metrics.loss for e in events if isinstance(e, StepCompleted)
        ]

    alone, losses = said()
    file = tmp_path / "other.csv"
    file.write_text("question,answer\n" + "".join(f"Q: {i}+1=?,{i + 1}\n" for i in range(200)))
    for second in ("sort", str(file)):
        both, same = said(**{"task.second": second})
        assert same == losses
        for before, now in zip(alone, both, strict=True):  # before and after the step
            assert {k: v for k, v in now.items() if k.startswith("heldout/")} == before
            assert {k.removeprefix("second/") for k in now if k.startswith("second/")} == {
                k.removeprefix("heldout/") for k in before
            }
            assert (
                0
                <= now["second/accuracy_low"]
                <= now["second/accuracy"]
                <= now["second/accuracy_high"]
                <= 1
            )
    with pytest.raises(
        InvalidConfig, match=r"task\.second = 'sums': this is the task that is trained on"
    ):
        said(**{"task.second": "sums"})
    with pytest.raises(InvalidConfig, match=r"task\.second = 'no/such\.csv'"):
        said(**{"task.second": "no/such.csv"})
    with pytest.raises(InvalidConfig, match=r"task\.second"):
        Limits(roots=(tmp_path / "elsewhere",)).check(parse(nest({"task.second": str(file)})))


# ---- probes --------------------------------------------------------------------------------------


def cheats(*criteria: dict) -> set[str]:
    return {p.name for p in probe(rubric(*criteria), PROMPT, len) if p.cheats}


def test_a_sound_rubric_is_not_cheated_and_a_hollow_one_is():
    assert (
        cheats(
            {"name": "right", "check": "accuracy", "outcome": True},
            {"name": "form", "check": "format", "weight": 0.2},
        )
        == set()
    )
    assert {"very long", "nothing"} <= cheats(
        {"name": "polite", "check": "repetition", "weight": 1}
    ) | cheats(
        {"name": "any", "check": "length", "params": {"min_tokens": 0, "max_tokens": 100000}}
    )
    assert "the answer fifty times" in cheats(
        {"name": "has_it", "check": "python"}
    )  # the default snippet: is the answer anywhere in the text?
    assert "bare tags" not in cheats(
        {"name": "form", "check": "format"}
    )  # blank tags earn nothing there
    assert "tags around filler text" in cheats({"name": "form", "check": "format"})


def test_honest_answers_come_first_and_get_their_reward():
    found = probe(rubric({"name": "right", "check": "accuracy"}), PROMPT, len)
    assert [p.reward for p in found[:2]] == [1.0, 1.0]
    assert not any(p.cheats for p in found[:2])


# ---- preflight -----------------------------------------------------------------------------------


def test_preflight_of_the_default_run_is_green_and_measured():
    config = parse(nest({"train.prompts_per_step": 4}))
    found = PreflightService().preflight(config)
    assert verdict(found) == "green", found
    said = {f.title: f.text for f in found}
    assert said["KL at first"].startswith("0 nats")
    assert "of held-out prompts are right now" in said["Baseline"]
    assert "80 steps take about" in said["Time"]


def test_preflight_is_red_where_a_run_would_have_no_gradient(tiny_settings):
    settings = {
        **tiny_settings,
        "rubric.name": "custom",
        "rubric.criteria": [
            {
                "name": "right",
                "check": "python",
                "weight": 1,
                "params": {"code": "def score(c, p, a, t): return 1/0"},
            }
        ],
    }
    found = PreflightService().preflight(parse(nest(settings)))
    assert verdict(found) == "red"
    text = " ".join(f.text for f in found if f.level == "red")
    assert "8 of 8 completions have no reward" in text
    assert "ZeroDivisionError" in text
    tied = PreflightService().preflight(
        parse(nest({**tiny_settings, "rubric.name": "accuracy only"}))
    )
    assert "100% of groups tie" in " ".join(f.text for f in tied if f.level == "red")


def test_red_stops_amber_asks_and_anyway_answers_except_where_nothing_could_work():
    green, amber, red = (
        Finding("green", "Time", "Fast."),
        Finding("amber", "Length", "Cut."),
        Finding("red", "Rubric", "Null."),
    )
    assert refusal([green], False) == refusal([], False) == ""
    assert (
        refusal([amber, green], False)
        == "Preflight found warnings. Length: Cut. Change it, or choose to start anyway."
    )
    assert (
        refusal([red, amber], False)
        == "Preflight would stop this run. Rubric: Null. Fix it, or choose to start anyway."
    )
    assert refusal([red, amber], True) == refusal([amber], True) == ""
    assert "Starting anyway is not possible" in refusal(
        [Finding("red", "Model", "Too large.", final=True)], True
    )


def test_a_report_stops_only_the_settings_it_is_about(tiny_settings):
    service = PreflightService()
    config = parse(nest({**tiny_settings, "rubric.name": "accuracy only"}))
    assert service.refusal(config, False) == ""  # nobody has looked
    assert verdict(service.preflight(config)) == "red"
    assert "of groups tie" in service.refusal(config, False)
    assert service.refusal(config, True) == ""
    from grpo_core.runs.manager import prepare

    assert "of groups tie" in service.refusal(prepare(config), False)  # its rubric written out
    assert (
        service.refusal(
            parse(nest({**tiny_settings, "rubric.name": "accuracy only", "train.seed": 1})), False
        )
        == ""
    )


@pytest.mark.slow
def test_the_command_line_runs_preflight_on_request(tiny_settings, tmp_path, capsys):
    from grpo_core.__main__ import main

    sets = [
        part
        for name, value in {**tiny_settings, "rubric.name": "accuracy only"}.items()
        for part in ("--set", f"{name}={value}")
    ]
    db = str(tmp_path / "r.sqlite")
    assert main(["train", "--db", db, "--preflight", *sets]) == 1
    said = capsys.readouterr().err
    assert "red    Groups: 100% of groups tie" in said
    assert "choose to start anyway. (--anyway)" in said
    assert not (tmp_path / "r.sqlite").exists()  # nothing was begun
    assert main(["train", "--db", db, "--preflight", "--anyway", *sets]) == 0


def test_a_kl_that_is_not_zero_at_first_is_red(tiny_settings):
    config = parse(nest(tiny_settings))
    said = first_step(config)
    from dataclasses import replace

    from grpo_core.preflight.model_report import report

    broken = FirstStep(replace(said.metrics, kl=0.02), said.groups, said.baseline, [])
    found = findings(config, report(config), {}, broken)
    assert [f.level for f in found if f.title == "KL at first"] == ["red"]


def test_preflight_waits_for_a_run_that_is_going():
    with pytest.raises(StudioError, match="A run is using"):
        PreflightService(options=ServiceOptions(in_use=lambda: {"cpu"})).preflight(parse(nest({})))


# ---- the workbench -------------------------------------------------------------------------------


def test_pasted_completions_are_compared_as_one_group_of_the_tasks_first_prompt():
    from grpo_core.tasks import TASKS, train_prompts

    [prompt] = train_prompts(TASKS["sums"], 0, 1, 1)
    tried = PreflightService().score_texts(
        parse(nest({})), [f"<answer>{prompt.answer}</answer>", "no"]
    )
    [group] = tried.groups
    assert [r.reward for r in group.rollouts] == pytest.approx(
        [1.3, 0.1]
    )  # answer .1, .2, 1; only clean text
    # (r - mean)/(std + 1e-4) of 1.3 and 0.1: ±0.6/(0.8485 + 1e-4)
    assert [r.advantage for r in group.rollouts] == pytest.approx([0.70702, -0.70702], abs=1e-4)
    assert set(tried.seconds) == {"accuracy", "format", "language", "reasoning"}


def test_sampled_groups_have_the_runs_size_and_are_shown_as_text():
    from ui.tabs.start_bar import findings as shown_findings
    from ui.tabs.workbench import probes as shown_probes
    from ui.tabs.workbench import tried as shown

    service, config = PreflightService(), parse(nest({"train.group_size": 4}))
    tried = service.try_rubric(config, 2)
    assert [len(g.rollouts) for g in tried.groups] == [4, 4]
    page = shown(tried)
    assert "&lt;answer&gt;" in page
    assert "<answer>" not in page
    assert "accuracy" in shown_probes(service.probe(config))
    assert "<script" not in shown_findings(service.preflight(config))


def test_changed_weights_apply_to_the_groups_in_view_without_sampling():
    from ui.tabs.form_fields import default_values
    from ui.tabs.workbench import reweighed, try_groups

    service, config = PreflightService(), parse(nest({}))
    texts = ["<answer>0</answer>", "no", "no"]
    tried = service.score_texts(config, texts)
    table = [
        {"name": "accuracy", "check": "accuracy", "weight": 1, "outcome": True},
        {"name": "format", "check": "format", "weight": 0.0},
    ]
    same = [c.model_dump() for c in build_rubric(config.rubric).criteria]
    heavier = parse(
        nest(
            {
                "rubric.name": "custom",
                "rubric.criteria": [
                    {**c, "weight": 2.0 if c["name"] == "format" else 0.0} for c in same
                ],
            }
        )
    )
    again = service.reweigh(heavier, tried.key)
    [group] = again.groups
    assert [r.scores for r in group.rollouts] == [r.scores for r in tried.groups[0].rollouts]
    assert [r.reward for r in group.rollouts] == pytest.approx([2.0, 0.0, 0.0])  # 2 × format alone
    # (2 - 2/3)/(1.1547 + 1e-4) and twice (0 - 2/3)/(…)
    assert [r.advantage for r in group.rollouts] == pytest.approx(
        [1.15460, -0.57730, -0.57730], abs=1e-4
    )
    # of the three pairs one is no, no; of the one triple none; beyond the sample (1/3)^4 + (2/3)^4
    assert [again.tied[g] for g in (2, 4)] == pytest.approx([1 / 3, 17 / 81])
    assert set(again.tied) == {2, 4, 8, 16, 32}
    assert (
        service.reweigh(parse(nest({"rubric.name": "custom", "rubric.criteria": table})), tried.key)
        is None
    )  # other criteria
    assert service.reweigh(config, "guessed") is None

    page, key = try_groups(default_values(), lambda c: service.score_texts(c, texts))
    assert reweighed(service, default_values(), key) == page
    assert (
        reweighed(service, default_values(), "")["__type__"] == "update"
    )  # nothing in view: skipped


def test_while_a_run_has_the_gpu_questions_are_answered_on_the_cpu(monkeypatch):
    """Row `app.py:112, desk.py:146, lending.py:42` of the reading: the server keeps the memory."""
    loaded, in_use = [], [()]

    def load(config, seed, device):
        loaded.append(device.type)
        return SimpleNamespace(num_parameters=1)

    monkeypatch.setattr("grpo_core.models.model_cache.load_policy", load)
    pretend_cards(monkeypatch, 1)
    service = PreflightService(options=ServiceOptions(in_use=lambda: in_use[0]))
    for state in ((), {"cuda:0"}, {"cuda:0"}, ()):  # a model that is loaded is used again
        in_use[0] = state
        with service._models.use(ModelConfig()):
            pass
    assert loaded == ["cuda", "cpu"]
    service.release_models()
    with service._models.use(ModelConfig()):
        pass
    assert loaded == ["cuda", "cpu", "cuda"]


def test_questions_use_another_card_while_a_run_has_the_first(monkeypatch):
    """Row `app.py:112, desk.py:146, lending.py:42` of the reading: or on another GPU."""
    pretend_cards(monkeypatch, 2)
    in_use = {"cuda:0"}
    service = PreflightService(options=ServiceOptions(in_use=lambda: in_use))
    assert service._device("auto") == torch.device("cuda:1")
    assert service._device("cuda:0") == torch.device("cpu")  # its run needs that card
    assert service._device("cuda:9") == torch.device("cuda:1")  # recorded on another machine
    in_use.add("cuda:1")
    assert service._device("auto") == torch.device("cpu")
    with pytest.raises(StudioError, match="A run is using this device"):
        service.preflight(parse(nest({"model.device": "cuda:1"})))


@pytest.mark.parametrize(("lease_seconds", "device"), [(None, "cpu"), (60, "auto")])
def test_preflight_takes_its_step_on_the_device_of_the_run(lease_seconds, device, monkeypatch):
    """On ZeroGPU the server has only a CPU, and the process of a lease finds its GPU by itself."""
    monkeypatch.setenv(VARIABLE, "cpu")
    asked = []

    def train(config, emit, control):
        asked.append(config.model.device)
        raise StudioError("enough")

    service = PreflightService(options=ServiceOptions(train=train, lease_seconds=lease_seconds))
    with pytest.raises(StudioError, match="enough"):
        service.preflight(parse(nest({})))
    assert asked == [device]
