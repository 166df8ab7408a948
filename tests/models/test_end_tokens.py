"""The tokens that end a completion, for the tokenizers and templates that people train."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import GenerationConfig, LlamaConfig

from grpo_core.models.end_tokens import find_end_ids
from tests.models.templates import CHATML, GEMMA, GPT_OSS, LLAMA3, chat_tokenizer

HARMONY = ["<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|endoftext|>"]
# Every assistant message ends in <|end|>, and so does its analysis.
HARMONY_CLOSED = GPT_OSS.replace("('<|return|>' if loop.last else '<|end|>')", "'<|end|>'")
QWEN = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LLAMA = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"]
COMMAND = ["<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|END_OF_TURN|>"]
CLOSED_TWICE = CHATML.replace("{%- if add_gen", "<|endoftext|>{%- if add_gen")
RESPONSE = (
    "{% for m in messages %}<|START_RESPONSE|>{{ m.content }}<|END_RESPONSE|><|END_OF_TURN|>"
    "{% endfor %}"
)
REASONED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n"
    "{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
)


def ends(template, special, named=(), eos=None, bos=None, config=None) -> set[str]:
    """The end tokens, by name. named: of the generation config."""
    tokenizer = chat_tokenizer(template, special, eos, bos)
    ids = tokenizer.convert_tokens_to_ids(list(named))
    generation = GenerationConfig(eos_token_id=ids or None)
    if config is not None:
        generation = GenerationConfig.from_model_config(config)
    model = SimpleNamespace(generation_config=generation, config=config or LlamaConfig())
    return set(tokenizer.convert_ids_to_tokens(sorted(find_end_ids(model, tokenizer))))


@pytest.mark.parametrize("template", [GPT_OSS, HARMONY_CLOSED, None])
def test_gpt_oss_ends_at_return_and_not_after_its_analysis(template):
    named = ["<|return|>", "<|endoftext|>", "<|call|>"]
    assert ends(template, [*HARMONY, "<|return|>"], named, "<|return|>") == set(named)
    assert ends(template, [*HARMONY, "<|return|>"], (), "<|return|>") == {"<|return|>"}


def test_the_tokens_that_a_model_names_leave_no_room_for_guesses():
    assert ends(None, [*QWEN, "<|end|>", "<|eot_id|>"], ["<|endoftext|>"]) == {"<|endoftext|>"}
    assert ends(None, [*LLAMA], ["<|end_of_text|>"], "<|end_of_text|>") == {"<|end_of_text|>"}


@pytest.mark.parametrize(
    ("template", "special", "document_end", "turn_end"),
    [
        (CHATML, QWEN, "<|endoftext|>", "<|im_end|>"),  # Qwen's base models
        (REASONED, QWEN, "<|endoftext|>", "<|im_end|>"),
        (CLOSED_TWICE, QWEN, "<|endoftext|>", "<|im_end|>"),  # turns, and then the document
        (LLAMA3, LLAMA, "<|end_of_text|>", "<|eot_id|>"),  # Llama 3's first generation config
        (GEMMA, ["<start_of_turn>", "<end_of_turn>"], "<eos>", "<end_of_turn>"),
    ],
)
def test_a_turn_may_end_where_only_the_documents_end_is_named(
    template, special, document_end, turn_end
):
    found = ends(template, special, [document_end], document_end, "<bos>")
    assert found == {document_end, turn_end}


def test_a_named_token_in_the_closing_is_the_end_not_the_one_before():
    assert ends(RESPONSE, COMMAND, ["<|END_OF_TURN|>"]) == {"<|END_OF_TURN|>"}
    assert ends(RESPONSE, COMMAND) == {"<|END_RESPONSE|>"}  # nothing is named: the first


def test_a_plain_gpt2_ends_at_its_only_special_token():
    assert ends(None, [], ["<|endoftext|>"], "<|endoftext|>", "<|endoftext|>") == {"<|endoftext|>"}


def test_usual_names_are_tried_where_nothing_names_an_end():
    assert ends(None, ["<|im_end|>", "<|endoftext|>"]) == {"<|im_end|>", "<|endoftext|>", "<|end|>"}
    assert ends(HARMONY_CLOSED, HARMONY) == {"<|end|>"}  # the template names one


def test_the_default_of_a_class_is_no_end_of_a_model():
    # LlamaConfig has eos_token_id 2; of this tokenizer 2 is a byte, and <|end|> is 260.
    assert LlamaConfig().eos_token_id == 2
    assert ends(None, [], eos="<|end|>", config=LlamaConfig()) == {"<|end|>"}
    chosen = LlamaConfig(eos_token_id=7)  # a configuration that says so is believed
    assert len(ends(None, [], eos="<|end|>", config=chosen)) == 2


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no') }}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
        "{% for m in messages if m.role == 'user' %}{{ m.content }}<|im_end|>{% endfor %}",
        "{{ ''.__class__ }}",
        "{% for m in messages %}{{ m.content }}{{ '\\ud800' }}{% endfor %}",
    ],
)
def test_a_template_that_names_no_end_changes_nothing(template):
    assert ends(template, QWEN, ["<|endoftext|>"]) == {"<|endoftext|>"}
