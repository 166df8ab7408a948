"""The Playground: a run in view gets a prompt and its answers, and never another run's."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import Server
from playwright.sync_api import expect
from set_up import field
from trained_runs import train_run
from views import pick_run, wait_for_answers

from grpo_core.config import nest, parse
from grpo_core.store import Store
from grpo_core.types import RunStatus

SETTINGS = {
    "task.heldout_size": 8,
    "train.prompts_per_step": 2,
    "train.group_size": 4,
    "train.learning_rate": 1e-2,
    "train.warmup_steps": 0,
    "train.eval_every": 2,
}


def slow_run(store: Store, folder: Path) -> None:
    """A run without saved states, whose model writes for seconds: it never draws its end token."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from scripts.bundled_model.make import make_tokenizer

    tokenizer = make_tokenizer()
    end = tokenizer.eos_token_id
    size = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 8}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            num_attention_heads=4,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
            **size,
        )
    )
    with torch.no_grad():
        model.lm_head.weight *= 20
        model.lm_head.weight[end] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = {**SETTINGS, "model.name": str(folder), "train.max_new_tokens": 1500}
    run_id = store.create_run(parse(nest(settings)), "slow")
    store.set_status(run_id, RunStatus.FINISHED)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[Server]:
    """A server over two trained runs, “second” the newer one, and the run “slow”."""
    db = tmp_path_factory.mktemp("played") / "runs.sqlite"
    store = Store(db)
    slow_run(store, db.parent / "slow")
    for name, steps in (("first", 3), ("second", 2)):
        train_run(store, {**SETTINGS, "train.steps": steps}, name, saves=True)
    store.close()
    server = Server(db)
    yield server
    server.close()


def test_a_prompt_is_answered_when_the_tab_is_opened(trained, open_page):
    page = open_page(trained)
    page.get_by_role("tab", name="Playground").click()
    answers = page.locator("#play-answers")
    wait_for_answers(page)
    expect(answers.locator("article")).to_have_count(2 * (1 + 4))
    wait_for_answers(page)
    expect(answers).to_contain_text("Answers of second to")
    prompt = page.get_by_role("textbox", name="Prompt", exact=True).input_value()
    assert page.get_by_label("Right answer").input_value()
    expect(answers.locator("q")).to_have_text(prompt)
    texts = answers.locator("article").all_inner_texts()
    assert all(("✓ right" in t) == bool(re.search(r"accuracy\s*1", t)) for t in texts)
    assert all(("✗ wrong" in t) != ("✓ right" in t) for t in texts)

    # Each side's share, beside the greedy answer and the held-out prompts.
    before = [t for t in texts[2::2] if "✓ right" in t]
    expect(answers.locator(".heads")).to_contain_text(f"{len(before)} of 4 sampled answers right")
    expect(answers.locator(".heads")).to_contain_text("of held-out prompts right")
    expect(answers.locator("article").first).to_have_accessible_name("Greedy, before training")

    # Pairs stand beside each other, and what differs is marked.
    for pair in answers.locator("section").all():
        tops = "cards => cards.map(card => card.getBoundingClientRect().top)"
        assert len(set(pair.locator("article").evaluate_all(tops))) == 1
        texts = pair.locator("pre").all_inner_texts()
        assert (pair.locator("ins, del").count() > 0) == (texts[0] != texts[1])
    assert answers.locator("ins, del").count() > 0


def test_another_prompt_is_answered_at_once(trained, open_page):
    page = open_page(trained, "?tab=playground")
    quoted = page.locator("#play-answers q")
    wait_for_answers(page)
    first = quoted.inner_text()
    page.get_by_role("button", name="Another prompt").click()
    expect(quoted).not_to_have_text(first)
    assert page.get_by_role("textbox", name="Prompt", exact=True).input_value() in (
        quoted.inner_text()
    )
    expect(page.locator("#play-answers article")).to_have_count(10)


def test_answers_never_stand_under_another_run(trained, open_page):
    page = open_page(trained, "?tab=playground")
    answers = page.locator("#play-answers")
    wait_for_answers(page)
    expect(answers).to_contain_text("Answers of second to")
    page.route("**/gradio_api/run/**", lambda route: None)  # the answer is on its way
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(answers).to_contain_text("Answering")
    pick_run(page, "first")
    expect(answers).not_to_contain_text("second")  # before the server has answered
    page.evaluate(
        "() => new MutationObserver(() => { window.said = (window.said || '') +"
        " document.querySelector('#play-answers').innerText; })"
        ".observe(document.querySelector('#play-answers'), {childList: true, subtree: true})"
    )
    page.unroute_all()  # what was held goes on
    expect(answers).to_contain_text("Answers of first to")
    assert "Answers of second" not in page.evaluate("window.said")
    expect(page.get_by_label("Right", exact=True)).to_have_value("after step 3")


def test_a_typed_prompt_is_asked_of_the_next_run_too(trained, open_page):
    page = open_page(trained, "?tab=playground")
    answers = page.locator("#play-answers")
    wait_for_answers(page)
    expect(answers).to_contain_text("Answers of second to")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("Q: 1+1+1=?")
    page.get_by_label("Right answer").fill("3")
    pick_run(page, "first")
    expect(answers).to_contain_text(re.compile("Answers of first to .*Q: 1.1.1=.*right answer 3"))


def test_a_server_that_is_away_is_named(trained, open_page):
    page = open_page(trained, "?tab=playground")
    wait_for_answers(page)
    page.route("**/gradio_api/run/**", lambda route: route.fulfill(status=503, body="{}"))
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page.locator("#play-answers")).to_contain_text("The server did not answer")


def test_answers_appear_while_they_are_written_and_can_be_stopped(trained, open_page):
    page = open_page(trained, "?tab=playground")
    answers = page.locator("#play-answers")
    pick_run(page, "slow")
    expect(page.locator("#play-about")).to_contain_text("no saved state yet")
    page.get_by_role("textbox", name="Prompt", exact=True).fill("Q: 1+1+1=?")
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()
    page.get_by_role("button", name="Answer", exact=True).click()
    written = answers.locator("article pre:not(.nothing)").first
    expect(answers.locator("article").first).to_contain_text("writing…")
    began = written.text_content()
    page.wait_for_function(
        "began => document.querySelector('#play-answers article pre').textContent.length > began",
        arg=len(began),
    )
    page.get_by_role("button", name="Stop").click()
    expect(answers).to_contain_text("You stopped the answers.")
    assert written.text_content().startswith(began)
    expect(page.get_by_role("button", name="Stop")).to_be_hidden()


def test_two_runs_answer_side_by_side(trained, open_page):
    page = open_page(trained, "?tab=playground")
    answers = page.locator("#play-answers")
    wait_for_answers(page)
    expect(answers).to_contain_text("Answers of second to")
    page.get_by_label("Left run").click()
    page.get_by_role("option", name="first").click()
    expect(page.get_by_label("Left", exact=True)).to_have_value("after step 3")
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(answers).to_contain_text("Answers of first and second to")
    expect(answers).to_contain_text("scored by the rubric of second")
    heads = answers.locator(".heads h3")
    expect(heads).to_have_text(["first, after step 3", "second, after step 2"])


def test_a_kept_answer_is_a_prompt_file_row_that_survives_a_reload(trained, open_page):
    page = open_page(trained, "?tab=playground")
    card = page.locator("#play-answers article").first
    wait_for_answers(page)
    text = card.locator("pre").inner_text()
    asked = page.get_by_role("textbox", name="Prompt", exact=True).input_value()
    right = page.get_by_label("Right answer").input_value()
    card.get_by_role("button", name="Keep: Greedy").press("Enter")
    kept = page.locator("#kept-answers")
    expect(kept).to_contain_text("1 kept answer")
    page.reload()
    expect(kept).to_contain_text("1 kept answer")
    with page.expect_download() as download:
        kept.get_by_role("button", name="Download JSONL").click()
    row = json.loads(download.value.path().read_text("utf-8"))
    assert (row["prompt"], row["answer"]) == (asked, right)
    assert row["completion"].strip() == text.strip()
    kept.get_by_role("button", name="Use in a new run").click()
    expect(page.locator("#notice")).to_contain_text("your kept answers as its prompts")
    expect(field(page, "Prompts from")).to_have_value(
        re.compile(r"uploads/\w+/kept-answers\.jsonl")
    )
    page.get_by_role("tab", name="Playground").click()
    kept.get_by_role("button", name="Remove kept answer 1").click()
    expect(kept).to_contain_text("Keep puts an answer here")
