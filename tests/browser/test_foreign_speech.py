"""A model that writes only hostile text: every view shows it as literal text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from live_server import Server
from playwright.sync_api import expect
from test_live_page import PAYLOADS
from trained_runs import train_run
from views import look, wait_for_answers

from grpo_core.store import Store
from scripts.bundled_model.make import END, PAD

WORDS = [
    *PAYLOADS,
    "<marquee onstart=alert(27)>",
    "<img src=http://203.0.113.7/p.png>",
    "<a ping=http://203.0.113.7/ href=#>x</a>",
    "javascript:alert(28)",
    "<svg><animate onbegin=alert(29) attributeName=x></svg>",
    "<x onpointerover=alert(30) style='font-size:9em'>y</x>",
]
SAID = [w for w in WORDS if w.isprintable()]


def hostile_model(folder: Path) -> Path:
    """A random model whose every token is a payload, and that never samples the end token."""
    from tokenizers import AddedToken, Tokenizer, decoders, models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(vocab={}, merges=[]))
    inner.decoder = decoders.ByteLevel()
    inner.add_tokens([AddedToken(payload, special=False, normalized=False) for payload in WORDS])
    inner.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in (END, PAD)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=512,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    # The first feature is large and equal at every token. It lowers only the end token's logit.
    with torch.no_grad():
        model.model.embed_tokens.weight[:, 0] = 5.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = -10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def speaking(tmp_path):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"question": p, "answer": p}) + "\n" for p in PAYLOADS))
    criteria = [{"name": name, "check": name, "weight": 1} for name in ("repetition", "format")]
    settings = {
        "model.name": str(hostile_model(tmp_path / "model")),
        "task.name": "file",
        "task.path": str(prompts),
        "task.heldout_size": 0,
        "rubric.name": "custom",
        "rubric.criteria": criteria,
        "train.steps": 1,
        "train.prompts_per_step": 1,
        "train.group_size": 16,
        "train.max_new_tokens": 160,
        "train.token_records": 1,
        "train.checkpoint_every": 1,
        "train.eval_every": 0,
    }
    store = Store(tmp_path / "runs.sqlite")
    run_id = train_run(store, settings, "speaks", saves=True)
    server = Server(store.path)
    yield server, store.group(store.group_ids(run_id, 1)[0])
    server.close()


def test_hostile_text_is_literal_in_tokens_what_if_and_playground(speaking, open_page):
    server, group = speaking
    assert all(len([p for p in SAID if p in r.text]) >= 40 for r in group.rollouts)
    page = open_page(server, "?tab=inspect&step=1&group=1")

    def shown(place: str) -> set[str]:
        text = page.locator(place).evaluate("node => node.textContent")
        return {p for p in SAID if p in text}

    def no_payload_became_an_element() -> None:
        """No payload became an element with its address or with its event handler."""
        alive = (
            "[src$='/x'], [src='x'], [onerror], [onload], [onfocus], [ontoggle], [onstart], "
            "[onbegin], [onpointerover], [ping], iframe, object, embed, marquee"
        )
        there = [
            f"[{name}*='203.0.113.7']" for name in ("src", "href", "data", "action", "content")
        ]
        assert (
            page.evaluate(
                "q => [...document.querySelectorAll(q)].map(e => e.outerHTML)",
                ", ".join([alive, *there]),
            )
            == []
        )

    page.locator("#opened article pre").first.wait_for()
    assert len(shown("#opened")) >= 40
    look(page, "Tokens")
    page.locator(".tokens").wait_for()
    assert len(shown(".tokens")) >= 40
    tokens = page.locator(".tokens")
    tokens.focus()
    for _ in range(12):  # what is said of each token beside it
        page.keyboard.press("ArrowRight")
    no_payload_became_an_element()
    look(page, "What if")
    page.locator("#look-controls output").first.wait_for()
    page.get_by_label("Weight of repetition").fill("0")
    expect(page.locator("#look-controls output").first).to_have_text("0")
    expect(page.locator("#look-body")).not_to_be_empty()
    no_payload_became_an_element()

    page.get_by_role("tab", name="Playground").click()
    expect(page.locator("#play-about")).to_contain_text("1 saved state")
    wait_for_answers(page)
    expect(page.locator("#play-answers section")).to_have_count(1 + 4)
    no_payload_became_an_element()
    page.get_by_role("textbox", name="Prompt", exact=True).fill("".join(SAID))
    page.get_by_label("Answers", exact=True).fill("16")
    page.get_by_role("button", name="Answer", exact=True).click()
    expect(page.locator("#play-answers section")).to_have_count(1 + 16)
    wait_for_answers(page)
    assert len(shown("#play-answers")) >= 40
    no_payload_became_an_element()
