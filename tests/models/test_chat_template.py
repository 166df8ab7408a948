"""Chat templates: rendered as transformers does, within limits, and with every message kept."""

from __future__ import annotations

import json
import logging
import multiprocessing
import time
from pathlib import Path

import pytest

from grpo_core.config import nest, parse
from grpo_core.errors import InvalidConfig
from grpo_core.models.chat_template import (
    ChatRefused,
    ChatTooLong,
    _template_process,
    opened_block,
    render,
)
from grpo_core.models.context_fit import fit_to_context
from grpo_core.models.policy import Reader, asked, encode_prompt, text_of
from grpo_core.tasks import load_task
from grpo_core.types import Prompt
from tests.models.templates import CHATML, GEMMA, GPT_OSS, LLAMA3, THINKING, chat_tokenizer

USER = [{"role": "user", "content": "hi"}]
LONG_CHAT = [
    {"role": "user", "content": ' é\n漢 <|im_end|> "x" \\ {{ 1 }} {% raise %} 🙂\r\n '},
    {"role": "assistant", "content": "ok"},
    {"role": "user", "content": "and 2?"},
]
TEMPLATES = {
    "ChatML": CHATML,
    "thinking": THINKING,
    "Llama 3": LLAMA3,
    "Gemma": GEMMA,
    "gpt-oss": GPT_OSS,
    "controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}",
}


def chat(template: str):
    return chat_tokenizer(template, [], eos="<|im_end|>", bos="<|begin|>")


def fault(template: str, messages=USER) -> str:
    """The message of a template that cannot be rendered."""
    with pytest.raises(InvalidConfig) as caught:
        render(chat(template), messages, True)
    [problem] = caught.value.problems
    assert problem.field == "model.name"
    assert "\n" not in str(problem)
    assert "chat template" in str(problem)
    return str(problem)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_helper_renders_byte_for_byte_as_transformers(name):
    tokenizer = chat(TEMPLATES[name])
    for messages in (USER, LONG_CHAT, [{**USER[0], "name": None}]):
        for prompted in (True, False):
            expected = tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=prompted
            )
            assert render(tokenizer, messages, prompted) == expected
            prompt = Prompt("p", messages[-1]["content"], "", "t", {"before": messages[:-1]})
            assert (
                encode_prompt(tokenizer, prompt, "")
                == (
                    tokenizer.apply_chat_template(
                        messages, add_generation_prompt=True, return_dict=True
                    )["input_ids"]
                )
            )


DOUBLED = "{% set n = namespace(s='x' * 1000) %}{% for i in range(40) %}{% set n.s = n.s + n.s %}"
NESTED = "{% for i in range(99999) %}" * 4


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (DOUBLED + "{% endfor %}{{ n.s }}", "too much memory"),
        ("{{ 'x' * 2 ** 40 }}", "too much memory"),
        ("{{ [0] * 10 ** 9 }}", "too much memory"),
        ("{{ 'x' * 2 * 10 ** 6 }}", "2,000,000 characters of a chat"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ range(10 ** 9) | length }}", "OverflowError"),
        ("{% for m in messages %}", "TemplateSyntaxError"),
        ("{{ messages[7].content.x.y }}", "UndefinedError"),
        ("{% include 'x' %}", "TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "RecursionError"),
        ("(" * 5 + "{{ " + "(" * 9999, "chat template"),
        ("{{ '%99999999999d' % 1 }}", "chat template"),
    ],
)
def test_a_template_with_a_fault_is_one_line_about_the_model(template, said):
    assert said in fault(template)


@pytest.mark.slow
@pytest.mark.parametrize(
    "template",
    [
        NESTED + "{% endfor %}" * 4,
        "{{ 9 ** (9 ** 9) }}",
        "{{ ('a' * 40000) | wordwrap(1) * 999999 }}",
    ],
    ids=["loops", "one power", "one filter"],
)
def test_an_endless_template_is_ended_and_the_next_works(template, monkeypatch):
    monkeypatch.setattr("grpo_core.models.chat_template.SECONDS", 0.5)
    started = time.monotonic()
    fault(template)
    assert time.monotonic() - started < 60
    monkeypatch.undo()  # a new process may need longer
    assert "hi" in render(chat(CHATML), USER, True)


def test_a_prompt_of_many_megabytes_is_too_long_not_fatal():
    for text in ("x" * (9 << 20), "🙂" * 800_000):
        with pytest.raises(ChatTooLong, match="too many to render"):
            render(chat(CHATML), [{"role": "user", "content": text}], True)
    assert (
        render(chat(CHATML), [{"role": "user", "content": "é" * 10**6}], True).count("é") == 10**6
    )


def test_of_several_templates_the_default_is_read_and_none_is_an_error():
    tokenizer = chat(CHATML)
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "x"}
    assert render(tokenizer, USER, True) == "hi"
    tokenizer.chat_template = {"rag": "x"}
    prompt = Prompt("p", "hi", "", "t", {"before": [{"role": "system", "content": "s"}]})
    with pytest.raises(InvalidConfig, match="no default"):
        encode_prompt(tokenizer, prompt, "")


def test_a_templates_refusal_names_the_row_and_its_words():
    before = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    prompt = Prompt("p", "What is 2+2?", "4", "t", {"before": before})
    with pytest.raises(InvalidConfig) as caught:
        encode_prompt(chat(GEMMA), prompt, "")
    text = str(caught.value)
    assert "What is 2+2?" in text
    assert "user, user, user" in text
    assert "roles must alternate" in text
    assert "\n" not in text
    with pytest.raises(ChatRefused, match=r"^one two$"):
        render(chat("{{ raise_exception('one\n two') }}"), USER, True)


def test_a_prompt_without_tokens_is_refused_and_half_a_character_is_read():
    for tokenizer, text in ((chat("{{ '' }}"), "2+2?"), (chat_tokenizer(None, [], "<x>"), "")):
        with pytest.raises(InvalidConfig, match=r"model\.name.*no"):
            encode_prompt(tokenizer, Prompt("p", text, "4", "t"), "")
    tokenizer = chat("{{ '\ud800' }}{{ messages[0].content }}")
    ids = encode_prompt(tokenizer, Prompt("p", "a\udfff", "4", "t"), "")
    assert text_of(tokenizer, ids) == "?a?"


DEAF = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@pytest.mark.parametrize("template", [GEMMA, DEAF], ids=["refuses", "drops"])
def test_a_system_message_without_a_role_joins_the_first_user_message(template, caplog):
    tokenizer = chat(template + " ")  # no other test asked about this template
    before = [
        {"role": "system", "content": "Be brief. "},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
    ]
    with caplog.at_level(logging.WARNING, "grpo_studio"):
        for earlier in (before, before[:1], [{"role": "system", "content": "No."}, before[0]]):
            prompt = Prompt("p", "2+2?", "4", "t", {"before": earlier})
            text = text_of(tokenizer, encode_prompt(tokenizer, prompt, "Add."))
            first = "1+1?" if len(earlier) == 3 else "Add.\n\n2+2?"
            assert f"Be brief.\n\n{first}" in text
    assert [r.message.count("no system role") for r in caplog.records] == [1]


def test_a_row_whose_roles_the_template_refuses_is_found_before_the_first_step(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("GRPO_STUDIO_CACHE", str(tmp_path / "cache"))
    rows = [
        {"messages": [{"role": "user", "content": f"{i}+1?"}], "answer": "1"} for i in range(99)
    ]
    twice = [{"role": "user", "content": 'a "quoted" \\'}, {"role": "user", "content": "the row?"}]
    path = tmp_path / "chats.jsonl"
    for last in (rows[0], {"messages": twice, "answer": "1"}):
        path.write_text("\n".join(map(json.dumps, [*rows, last])))
        config = parse(nest({"task.name": "file", "task.path": str(path), "task.heldout_size": 5}))
        task, reader = load_task(config.task), Reader(chat(GEMMA), 512)
        if last is rows[0]:
            assert fit_to_context(task, reader, config) is task
        else:
            with pytest.raises(InvalidConfig, match=r"user, user .*must alternate.*the row\?"):
                fit_to_context(task, reader, config)


def test_a_template_with_a_system_role_keeps_its_own_form():
    before = [{"role": "system", "content": "Be brief."}]
    prompt = Prompt("p", "2+2?", "4", "t", {"before": before})
    assert asked(chat(CHATML), prompt, "") == [*before, {"role": "user", "content": "2+2?"}]


def _render_in_child(queue) -> None:
    queue.put(render(chat(CHATML), USER, True))


def test_a_forked_process_renders_with_a_helper_of_its_own():
    expected = render(chat(CHATML), USER, True)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_render_in_child, args=(queue,))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join(10)
    assert render(chat(CHATML), USER, True) == expected


def test_the_helper_knows_no_secret_and_imports_no_torch(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    _template_process().close()
    render(chat(CHATML), USER, True)
    process = _template_process()._process
    assert process is not None
    about = Path(f"/proc/{process.pid}")
    assert "hf_secret" not in (about / "environ").read_text()
    assert "libtorch" not in (about / "maps").read_text()


# ---- begin and end tokens of a prompt ------------------------------------------------------------


def wrapped(begin: bool, end: bool):
    """A tokenizer without template that adds begin and end tokens to every text."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = chat_tokenizer(None, [], eos="</s>", bos="<s>")
    ids = {t: tokenizer.convert_tokens_to_ids(t) for t in ("<s>", "</s>")}
    single = f"{'<s> ' if begin else ''}$A{' </s>' if end else ''}"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair=f"{single} $B", special_tokens=list(ids.items())
    )
    return tokenizer


@pytest.mark.parametrize("begin", [True, False])
@pytest.mark.parametrize("end", [True, False])
@pytest.mark.parametrize("text", ["2+2=", "<s>2+2="])
def test_a_bare_prompt_begins_once_and_never_ends(begin, end, text):
    tokenizer = wrapped(begin, end)
    read = text_of(tokenizer, encode_prompt(tokenizer, Prompt("p", text, "4", "t"), ""))
    assert read == ("<s>2+2=" if begin else text)
    chat_too = wrapped(begin, end)
    chat_too.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    read = text_of(chat_too, encode_prompt(chat_too, Prompt("p", "2+2=", "4", "t"), ""))
    assert read == "<s>2+2="


# ---- blocks that the prompt opens ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "opening"),
    [
        ("<|im_start|>assistant\n<think>", "<think>"),
        ("<|im_start|>assistant\n<think>\n", "<think>\n"),
        ("<｜Assistant｜><think>\n", "<think>\n"),
        ("[/INST]<think>", "<think>"),
        ("assistant<think>", "<think>"),
        ("<|im_start|>assistant\n<think>\nOkay, 2+2", "<think>\nOkay, 2+2"),
        ("hi<｜Assistant｜><think>\nFirst", "<think>\nFirst"),
        ("<|im_start|>user\nUse <think> first<|im_end|>\n<|im_start|>assistant\n", ""),
        ("<|assistant|>\nSure, ", ""),
        ("Write inside\n<think>\nyour thoughts", ""),
        ("Assistant: Let me solve this step by step.\n<think>", "<think>"),
        ("assistant\n<|thinking|>\r\n", "<|thinking|>\r\n"),
        ("<｜begin▁of▁thinking｜>", "<｜begin▁of▁thinking｜>"),
        ("Write it.\n<proof>\n", "<proof>\n"),
        ("assistant\n<|begin_of_thought|>\n\n", "<|begin_of_thought|>\n\n"),
        ("<|im_start|>assistant\n<answer>", "<answer>"),
        ("[INST]hi[/INST][THINK]", "[THINK]"),
        ("A: <start_working_out>", "<start_working_out>"),
        ("◁think▷", "◁think▷"),
        ("assistant\n<seed:think>", "<seed:think>"),
        ("<|START_THINKING|>", "<|START_THINKING|>"),
        ("assistant\n<SOLUTION>\n", "<SOLUTION>\n"),
        ("assistant\n<think>\n\n</think>\n\n", ""),
        ("<|START_THINKING|><|END_THINKING|>", ""),
        ("<|im_start|>assistant\n", ""),
        ("<|start_header_id|>assistant<|end_header_id|>\n\n", ""),
        ("<start_of_turn>model\n", ""),
        ("<|user|>\nhi<|end|>\n<|assistant|>\n", ""),
        ("<｜User｜>hi<｜Assistant｜>", ""),
        ("<s>[INST] hi [/INST]", ""),
        ("[INST]", ""),
        ("[Question] 1+1 [Answer]", ""),
        ("<assistant>\n", ""),
        ("<|start|>assistant<|channel|>final<|message|>", ""),
        ("<start_of_turn>", ""),
        ("<bos>", ""),
        ("<s>", ""),
        ("std::vector<int>", ""),
        ("Use the tags <think> and <answer>. 1+1=", ""),
        ("a < b and b > ", ""),
        ("a line<br>", ""),
        ("", ""),
    ],
)
def test_only_a_block_left_open_at_the_end_counts(prompt, opening):
    assert opened_block(prompt) == opening
