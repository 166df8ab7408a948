"""The bundled model: small Hugging Face files, any text, and about a third of the sums right."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

import grpo_core.models.bundled as bundled
from grpo_core.tasks import TASKS, extract_answer, train_prompts
from grpo_core.types import Prompt
from scripts.bundled_model.make import CALL_TAGS, TAGS
from scripts.bundled_model.measure import Sampled, accuracy_interval, sample_heldout
from scripts.bundled_model.texts import REASON, completion, work

FOLDER = Path(bundled.__file__).parent


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER).eval()


def test_the_model_is_small_enough_to_ship(model):
    assert model.num_parameters() <= 2_000_000
    assert (
        sum(f.stat().st_size for f in FOLDER.iterdir() if f.suffix in (".safetensors", ".json"))
        <= 8 * 2**20
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_model_and_tokenizer_agree_on_their_vocabulary_and_end(model, tokenizer):
    # 256 bytes + 4 tags + end + pad + 4 tags of calls = 266
    assert model.config.vocab_size == len(tokenizer) == 266
    assert tokenizer.eos_token == "<|end|>"
    assert tokenizer.pad_token == "<|pad|>"
    assert (
        model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id
    )
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    assert tokenizer.chat_template is None


@pytest.mark.parametrize("tag", [*TAGS, *CALL_TAGS])
def test_a_tag_is_one_token_and_survives_decoding(tokenizer, tag):
    ids = tokenizer.encode(f"a{tag}b<|end|>")
    assert len(ids) == 4
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"a{tag}b"


def test_encoding_adds_no_token(tokenizer):
    # One byte, one token: no first token, no prefix space. "é" is two bytes in UTF-8.
    assert len(tokenizer.encode("Q: 84+39+62=?")) == 13
    assert len(tokenizer.encode("é")) == 2
    assert tokenizer.encode("") == []


@pytest.mark.parametrize(
    "text",
    [
        " a",
        "  a  b ",
        "a\r\n\tb\n",
        "<think",
        "<answer> </answer >",
        "don't , do n't .",
        "\0\x01\x7f",
        "\u200b\u202e\ufeff",
        "e\u0301",
        "é",
        "Ａ",
        "ﬁ",
        "日本語",
        "👩‍👩‍👧",
        "<|end|><|pad|>",
        "</think></think>",
        "a" * 5000,
    ],
)
def test_hostile_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
@settings(max_examples=200)
def test_every_text_comes_back_as_it_was(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.slow
def test_the_model_half_knows_its_default_task(model, tokenizer):
    # About a third is right (docs/bundled_model.md): there is room to learn, and groups differ.
    # 100 prompts x 8 samples have a 95 % interval of about +-0.03.
    torch.manual_seed(0)
    sampled = sample_heldout(model, tokenizer, TASKS["sums"], num_prompts=100)
    accuracy, _ = accuracy_interval(sampled)
    assert 0.15 < accuracy < 0.5
    assert len({s.prompt for s in sampled if s.right}) >= 85  # right among eight nearly always
    reasoned = [s.right for s in sampled if s.reasoned]
    direct = [s.right for s in sampled if not s.reasoned]
    assert sum(reasoned) / len(reasoned) > 0.6 > 0.3 > sum(direct) / len(direct)
    assert len(reasoned) < 0.5 * len(sampled)


# ---- the texts it was made from ------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_a_reasoned_text_is_right_and_fits_the_default_token_limit(task, tokenizer):
    for prompt in train_prompts(task, 0, 0, 300):
        begin, answer = work(prompt, random.Random(prompt.id))
        assert task.grade(answer, prompt) == 1.0
        assert len(tokenizer.encode(f"{begin}<answer>{answer}</answer><|end|>")) <= 48


def test_the_steps_of_a_reasoned_text_are_the_arithmetic_they_look_like():
    rng = random.Random(0)
    for name in ("sums", "arithmetic", "countdown"):
        for prompt in train_prompts(TASKS[name], 1, 0, 100):
            for step in REASON[name](prompt, rng)[0].split(","):
                left, _, right = step.partition("=")
                assert eval(left) == int(right)


def test_letters_picked_one_by_one_spell_the_sorted_word():
    prompt = Prompt("id", "Q: sort banab", "aabbn", "sort", {"word": "banab"})
    assert REASON["sort"](prompt, random.Random(0)) == ("a:bnab a:bnb b:nb b:n n", "aabbn")


def test_answers_given_at_once_are_mostly_wrong_and_reasoned_ones_right():
    # DIRECT_WRONG is 0.8, and a quarter of the 0.08 with a broken format has no answer:
    # 0.2 * 0.98 = 0.196 are right at once, and 0.98 if reasoned. 1000 texts: sd 0.013 and 0.005.
    rng = random.Random(0)
    for frac, low, high in ((0.0, 0.14, 0.25), (1.0, 0.96, 1.0)):
        prompts = train_prompts(TASKS["sums"], 2, 0, 1000)
        answers = [extract_answer(completion(p, rng, frac)) for p in prompts]
        right = sum(
            a is not None and TASKS["sums"].grade(a, p) == 1.0
            for a, p in zip(answers, prompts, strict=True)
        )
        assert low < right / 1000 < high


def test_the_interval_counts_prompts_not_samples():
    # Two prompts, two samples each: shares 1 and 0.5. Mean 0.75, sample sd 0.35355, half width
    # 1.96 * 0.35355 / sqrt(2) = 0.49.
    sampled = [
        Sampled(0, "", 1, True),
        Sampled(0, "", 1, True),
        Sampled(1, "", 1, True),
        Sampled(1, "", 1, False),
    ]
    assert accuracy_interval(sampled) == pytest.approx((0.75, 0.49))
