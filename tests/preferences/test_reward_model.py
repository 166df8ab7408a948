"""From judged pairs to a folder that the criterion reward_model loads."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from grpo_core.cli import main
from grpo_core.config import Criterion, RubricConfig
from grpo_core.errors import InvalidConfig, StudioError
from grpo_core.models import load_classifier
from grpo_core.preferences.bradley_terry import bradley_terry_loss
from grpo_core.preferences.judged_pairs import Pair, Split, judged_pairs, split_by_prompt
from grpo_core.preferences.reward_folder import NUMBERS, check_out, save
from grpo_core.preferences.reward_report import calibration, length_share, report
from grpo_core.preferences.reward_settings import reward_settings
from grpo_core.preferences.reward_training import train_reward_model
from grpo_core.rubric import build_rubric
from grpo_core.rubric.reward_model import encode, logits_of, text_read
from grpo_core.store import Store, preferences
from grpo_core.store.preferences import Preference
from grpo_core.types import Completion, Prompt

SHORT, LONG = "<answer>{}</answer>", "<think>{}, again {}</think><answer>{}</answer>"


def pairs(count: int, ties: int = 0) -> list[Pair]:
    """Pairs of which the shorter answer is the better one, two for each prompt."""
    rng, made = random.Random(0), []
    for i in range(count):
        prompt = Prompt(str(i // 2), f"Q: {10 + i // 2}+7=?", "", "sums")
        n = rng.randint(10, 99)
        made.append(Pair(prompt, SHORT.format(n), LONG.format(n, n, n), i < ties))
    return made


def stored(pair: Pair, number: int) -> Preference:
    left, right = (pair.chosen, pair.rejected)[:: 1 if number % 2 else -1]
    return Preference(
        prompt=pair.prompt.text,
        left=left,
        right=right,
        verdict="left" if number % 2 else "right",
        created_at=float(number),
        source="page",
    )


def train(count: int = 40, **settings):
    settings = reward_settings({"epochs": 2, **settings})
    split = split_by_prompt(pairs(count), settings.heldout_share, settings.seed)
    return train_reward_model(split, settings), split, settings


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model, its split, its folder, and the numbers in it."""
    model, split, settings = train()
    folder = tmp_path_factory.mktemp("reward") / "model"
    return model, split, folder, save(model, split, settings, folder)


# ---- formulas ------------------------------------------------------------------------------------


def test_the_loss_is_that_of_bradley_and_terry():
    chosen, rejected = torch.tensor([1.0, 3.0, 2.0, 0.0]), torch.tensor([1.0, 1.0, 0.0, 2.0])
    is_tie = torch.tensor([False, False, True, True])
    margin = torch.tensor([0.0, 0.5, 9.0, 9.0])  # a tie has none
    tie = -0.5 * (math.log(1 / (1 + math.exp(-2))) + math.log(1 / (1 + math.exp(2))))
    expected = [math.log(2), math.log(1 + math.exp(-1.5)), tie, tie]
    torch.testing.assert_close(
        bradley_terry_loss(chosen, rejected, is_tie, margin), torch.tensor(expected)
    )


def test_a_tie_is_least_likely_far_from_zero():
    d = torch.tensor([0.0, 1.0, -1.0], requires_grad=True)
    bradley_terry_loss(d, torch.zeros(3), torch.ones(3, dtype=torch.bool)).sum().backward()
    assert d.grad is not None
    # -½ [σ(-d) - σ(d)] = σ(d) - ½
    torch.testing.assert_close(d.grad, torch.sigmoid(d.detach()) - 0.5)


def test_calibration_compares_predictions_with_shares():
    # σ(0.2) = 0.55, σ(3) = 0.953: one of two right, and one of one.
    bins = calibration([0.2, -0.2, 3.0])
    assert [b.num_pairs for b in bins] == [2, 0, 0, 0, 1]
    assert bins[0].predicted == pytest.approx(0.549834)
    assert (bins[0].right, bins[4].right, bins[1].right) == (0.5, 1.0, None)


def test_length_share_is_the_squared_correlation_of_differences():
    assert length_share([1.0, -2.0, 3.0], [2, -4, 6]) == pytest.approx(1.0)
    # (1·1 + 1·(-1))² = 0; (2·1 + 1·1)² / (5·2) = 0.9
    assert length_share([1.0, 1.0], [1, -1]) == 0.0
    assert length_share([2.0, 1.0], [1, 1]) == pytest.approx(0.9)
    assert length_share([1.0, 2.0], [0, 0]) is None


def test_the_report_counts_decided_pairs_only():
    found = report(pairs(4, ties=1), [5.0, 1.0, -1.0, 2.0])
    assert (found.num_pairs, found.num_ties) == (3, 1)
    assert found.accuracy == pytest.approx(2 / 3)
    # Wilson: (2/3 + 1.96²/6 ± 1.96·√(2/27 + 1.96²/36)) / (1 + 1.96²/3)
    assert (found.low, found.high) == pytest.approx((0.20766, 0.93851), abs=1e-4)
    assert found.longer_preferred == 0.0
    assert found.longer_scored == pytest.approx(1 / 3)


# ---- the split -----------------------------------------------------------------------------------


def test_no_prompt_is_on_both_sides():
    split = split_by_prompt(pairs(100), 0.2, seed=3)
    learnt, held = ({p.asked for p in side} for side in (split.train, split.heldout))
    assert not learnt & held
    assert (len(split.train), len(split.heldout)) == (80, 20)
    assert split.heldout != split_by_prompt(pairs(100), 0.2, seed=4).heldout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (pairs(9), "9 decided pairs are too few"),
        (pairs(12, ties=12), "all are ties"),
        ([Pair(Prompt("1", "Q", "", ""), "a", "b")] * 12, "answers to one prompt"),
    ],
    ids=["few", "ties", "one prompt"],
)
def test_pairs_that_teach_nothing_are_refused(given, words):
    with pytest.raises(StudioError, match=words):
        split_by_prompt(given, 0.2, 0)


def test_judgements_of_one_side_are_refused():
    judged = [stored(pair, 1) for pair in pairs(20)]
    with pytest.raises(StudioError, match="all 20 judgements say 'left'"):
        judged_pairs(judged)
    assert len(judged_pairs([stored(p, i) for i, p in enumerate(pairs(20))])) == 20


def test_margins_and_ties_of_judgements_are_kept():
    one = stored(pairs(1)[0], 0)
    kept = [
        Preference(**{**{n: getattr(one, n) for n in one.__slots__}, **more})
        for more in ({"margin": -2.5}, {"verdict": "tie"}, {"verdict": "skip"})
    ]
    decided, tie = judged_pairs(kept)
    assert (decided.chosen, decided.margin, decided.is_tie) == (one.right, 2.5, False)
    assert tie.is_tie


@pytest.mark.parametrize("given", [{"epochs": 0}, {"heldout_share": 1.0}, {"base": ""}])
def test_a_setting_out_of_bounds_is_named(given):
    with pytest.raises(InvalidConfig, match=next(iter(given))):
        reward_settings(given)


# ---- training ------------------------------------------------------------------------------------


def test_it_learns_which_answer_is_better(trained):
    model, *_ = trained
    assert model.heldout.accuracy == 1.0
    assert model.heldout.loss < math.log(2) < 0.7
    assert model.curve[0].loss is None
    assert [point.step for point in model.curve] == list(range(model.curve[-1].num_steps + 1))
    assert model.curve[-1].heldout_accuracy == 1.0


def test_the_same_seed_gives_the_same_model(trained):
    again, *_ = train()
    other, *_ = train(seed=1)
    model = trained[0]
    for name, weight in model.model.state_dict().items():
        assert torch.equal(weight, again.model.state_dict()[name]), name
    assert not torch.equal(model.model.score.weight, other.model.score.weight)


def test_the_criterion_reads_what_training_read(trained):
    model, split, folder, _ = trained
    criterion = Criterion(
        name="liked", check="reward_model", weight=1.0, params={"model": str(folder)}
    )
    rubric = build_rubric(RubricConfig(name="custom", criteria=(criterion,)))
    pair = split.heldout[0]
    scored = rubric.score_all([Completion(pair.chosen, "stop", 5)], [pair.prompt])
    text = text_read(model.tokenizer, pair.prompt, pair.chosen)
    [logit] = logits_of(model.model, model.tokenizer, [text], 1024, 1)
    assert scored.scores[0]["liked"] == pytest.approx(torch.sigmoid(logit[0]).item(), abs=1e-6)


def test_the_score_is_read_at_the_last_real_token(trained):
    _, split, folder, _ = trained
    model, tokenizer = load_classifier(str(folder))
    texts = [
        text_read(tokenizer, p.prompt, a) for p in split.heldout for a in (p.chosen, p.rejected)
    ]
    together = torch.cat(logits_of(model, tokenizer, texts, 1024, len(texts)))
    alone = torch.cat(logits_of(model, tokenizer, texts, 1024, 1))
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    ids = encode(tokenizer, texts[:2], 1024)
    hidden = model.model(**ids).last_hidden_state  # (2, T, d)
    last = ids["attention_mask"].sum(1) - 1
    by_hand = model.score(hidden[torch.arange(2), last])[:, 0]
    torch.testing.assert_close(together[:2], by_hand, rtol=0, atol=1e-5)


def test_a_folder_holds_the_numbers_and_a_card(trained):
    _, split, folder, numbers = trained
    assert json.loads((folder / NUMBERS).read_text()) == json.loads(json.dumps(numbers))
    assert numbers["pairs"]["train"] == len(split.train)
    names = {p.name for p in folder.iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md"} <= names
    card = (folder / "README.md").read_text()
    assert "pair accuracy | 100.0 % (95 % interval" in card
    with pytest.raises(StudioError, match="is not empty"):
        check_out(folder)


def test_adapters_are_trained_and_merged(tmp_path):
    model, split, settings = train(lora_rank=4, learning_rate=1e-2, epochs=4)
    assert model.heldout.accuracy == 1.0
    save(model, split, settings, tmp_path / "model")
    loaded, tokenizer = load_classifier(str(tmp_path / "model"))
    text = text_read(tokenizer, split.heldout[0].prompt, split.heldout[0].chosen)
    scores = [logits_of(m, tokenizer, [text], 1024, 1)[0] for m in (loaded, model.model)]
    torch.testing.assert_close(*scores)


def test_a_stopped_training_keeps_its_model():
    settings, seen = reward_settings({}), []
    split = split_by_prompt(pairs(40), 0.2, 0)
    model = train_reward_model(split, settings, seen.append, lambda: len(seen) > 1)
    assert model.was_stopped
    assert len(model.curve) == len(seen) == 2
    assert model.heldout.accuracy is not None


def test_a_margin_asks_for_a_larger_lead():
    settings = reward_settings({"epochs": 1, "margin": 1.0})
    plain = split_by_prompt(pairs(20), 0.2, 0)
    wide = [Pair(p.prompt, p.chosen, p.rejected, margin=3.0) for p in plain.train]
    losses = []
    for learnt in (plain.train, wide):
        losses.append(train_reward_model(Split(learnt, plain.heldout), settings).curve[1].loss)
    assert losses[1] > losses[0] + 1


@pytest.mark.parametrize("base", ["no/where", "/no/where"])
def test_a_base_that_cannot_be_read_is_named(base):
    with pytest.raises(StudioError, match=f"base = '{base}'"):
        train(base=base)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def database(tmp_path):
    store = Store(tmp_path / "runs.sqlite")
    preferences.add(store, [stored(p, i) for i, p in enumerate(pairs(40))])
    return store


def run(capsys, *arguments) -> tuple[int, list]:
    code = main(["reward-model", "--json", *map(str, arguments)])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_command_trains_from_a_database_in_use(database, tmp_path, capsys):
    out = tmp_path / "out"
    with database.writing():
        code, lines = run(capsys, "--from", database.path, "--out", out, "--epochs", 2)
    assert code == 0
    assert lines[0]["step"] == 0
    last = lines[-1]
    assert list(last) == ["heldout_accuracy", "interval", "pairs", "seconds", "out"]
    assert (last["heldout_accuracy"], last["pairs"], last["out"]) == (1.0, 40, str(out))
    assert last["interval"][0] < 1.0 == last["interval"][1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--from", "none.sqlite"), "there is no such file"),
        (("--who", "nobody"), "no preferences of 'nobody'"),
        (("--epochs", "0"), "epochs = 0"),
        (("--base", "no/where"), "base = 'no/where'"),
    ],
)
def test_a_request_that_cannot_work_is_refused(database, tmp_path, capsys, arguments, words):
    given = ("--db", database.path, "--out", tmp_path / "out", *arguments)
    code, lines = run(capsys, *given)
    assert code == 2
    assert words in lines[-1]["error"][0]
    assert not (tmp_path / "out").exists()
