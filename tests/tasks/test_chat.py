"""Cells that hold chats or answers: read where they are text, else refused with the column."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grpo_core.tasks.cells import BadCell
from grpo_core.tasks.columns import Reading, choose_columns, row_to_prompt


def read(row, **more):
    return row_to_prompt(row, choose_columns([row], "", ""), Reading(**more))


def question(cell, **more):
    found = read({"prompt": cell, **more})
    return None if found is None else found.text


def answer(cell):
    return read({"prompt": "x", "answer": cell}).answer


def user(content):
    return [{"role": "user", "content": content}]


def text_part(text, kind="text"):
    return {"type": kind, "text": text}


# ---- chats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cell",
    [
        user("2+2?"),
        user([text_part("2+2?")]),
        user([text_part("2+", "input_text"), " ", text_part("2?", "output_text")]),
        user({"type": "text", "text": "2+2?"}),
        user([{"type": "text", "text": "2+2?", "image_url": None}]),
        user(["2+2?"]),
        [text_part("2+2?")],
        text_part("2+2?"),
        {"role": "user", "content": "2+2?"},
        {"from": "human", "value": "2+2?"},
        {"messages": user("2+2?")},
        {"role": "User", "content": "2+2?", "from": None, "value": None},
        np.array(user("2+2?"), dtype=object),
        tuple(user("2+2?")),
        b"2+2?",
        json.dumps(user("2+2?")),
        json.dumps({"role": "user", "content": "2+2?"}, indent=1),
        json.dumps([text_part("2+2?")]),
        [*user("2+2?"), {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}],
        [{"role": "system", "content": None}, *user("2+2?")],
    ],
)
def test_every_form_of_one_user_message_is_its_text(cell):
    found = read({"prompt": cell})
    assert (found.text.replace(" ", ""), found.before, found.answer) == ("2+2?", (), "")


def test_parts_are_joined_without_melting_two_words():
    parts = [text_part("Look."), text_part("What is "), text_part("this?"), None]
    assert question(user(parts)) == "Look.\nWhat is this?"


def test_earlier_messages_keep_their_order_roles_and_parts():
    chat = [
        {"role": "developer", "content": "Be brief."},
        {"role": "human", "content": [text_part("Hi")]},
        {"role": "gpt", "content": "Hello", "tool_calls": None},
        {"role": "tool", "content": "4"},
        *user("And?"),
        {"role": "assistant", "content": [text_part("So")]},
    ]
    found = read({"messages": chat})
    assert [(m["role"], m["content"]) for m in found.before] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("tool", "4"),
    ]
    assert (found.text, found.answer, found.is_chat) == ("And?", "So", True)


@pytest.mark.parametrize(
    "cell",
    [
        None,
        float("nan"),
        "",
        " \n",
        [],
        {},
        user(None),
        user(""),
        user([]),
        user([text_part(" ")]),
        [{"role": "assistant", "content": "4"}],
        [{"role": "system", "content": "Be brief."}],
        {"role": None, "content": None},
    ],
)
def test_a_cell_without_a_question_is_an_empty_row(cell):
    assert read({"prompt": cell, "answer": ["never", "read"]}) is None


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (["a", "b"], "a list of 2 values"),
        (["a"], "a list of 1 value"),
        ([user("a")], "a list of 1 value"),
        ({"a": 1}, "an object with 'a'"),
        ([{"a": 1}], "a list of 1 value"),
        (user([{"type": "image", "url": "x"}, text_part("a")]), "message 1 .* type 'image'"),
        (user([{"type": "image_url", "image_url": {"url": "x"}}]), "type 'image_url'"),
        (user([{"text": "a", "image": b"\x89PNG"}]), "message 1"),
        (user([text_part(None)]), "message 1"),
        (user([["a"]]), "message 1"),
        ([{"role": "user", "text": "a"}], "message 1 .* no content"),
        ([{"role": "user", "parts": [{"text": "a"}]}], "message 1 .* no content"),
        ([{"role": "narrator", "content": "a"}], "role 'narrator'"),
        ([{"role": 3, "content": "a"}], "role 3"),
        ([*user("a"), {"role": "tool", "content": "4"}], "ends with .* 'tool'"),
        ([*user("a"), *[{"role": "assistant", "content": "b"}] * 2], "ends with .* 'assistant'"),
        ([*user("a"), {"type": "text", "text": "b"}], "message 2"),
        ([{"role": "assistant", "content": None}, *user("a")], "message 1 .* no content"),
        (
            [{"role": "assistant", "content": "b", "tool_calls": [{"id": 1}]}, *user("a")],
            "message 1 .* calls a tool",
        ),
        (str(user("a")), "as Python prints it"),
        (json.dumps(user([{"type": "image_url", "image_url": "x"}])), "type 'image_url'"),
        (b"\xff\xfe", "not UTF-8"),
        (object(), "type object"),
    ],
)
def test_a_cell_that_is_neither_text_nor_a_chat_is_refused(cell, says):
    with pytest.raises(BadCell, match=f"^column 'prompt': .*{says}"):
        read({"prompt": cell, "answer": "1"})


@pytest.mark.parametrize(
    "text",
    [
        '["b", "a"]',
        "[3, 1, 2]",
        '{"type": "object", "properties": {}}',
        '{"role": "admin", "content": "x"}',
        '{"from": "Paris", "to": "Rome"}',
        "[{'a': 1}]",
        "{" * 3000,
    ],
)
def test_text_that_is_no_chat_stays_as_it_is(text):
    assert question(text) == text


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (["48"], "48"),
        ([["48", None]], "48"),
        (["48", " 48"], "48"),
        (np.array([48]), "48"),
        ('["48"]', "48"),
        ("['48']", "48"),
        (48, "48"),
        (48.0, "48"),
        (np.int64(48), "48"),
        (np.float32(0.1), "0.1"),
        (np.float64(0.1), "0.1"),
        (Decimal("48.00"), "48"),
        (Decimal("0.10"), "0.10"),
        (True, "True"),
        (np.bool_(True), "True"),
        (b"48", "48"),
        (datetime.date(2026, 1, 2), "2026-01-02"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
        ([{"role": "assistant", "content": "blue"}], "blue"),
        ({"role": "assistant", "content": [text_part("blue")]}, "blue"),
        (None, ""),
        (float("nan"), ""),
        (np.float32("nan"), ""),
        (np.datetime64("NaT"), ""),
        (Decimal("NaN"), ""),
        ("", ""),
        ([], ""),
        ([None, ""], ""),
        ("[1, 2]", "[1, 2]"),
    ],
)
def test_an_answer_is_the_text_that_a_person_would_write(cell, text):
    assert answer(cell) == text


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (["a", "b"], "2 answers"),
        ([1, [2]], "2 answers"),
        ({"value": 48}, "an object with 'value'"),
        ([{"value": 48}], "an object with 'value'"),
        (b"\xff", "not UTF-8"),
        (object(), "type object"),
        ([*user("a"), *user("b")], "a chat of 2 messages"),
    ],
)
def test_an_answer_that_is_no_single_text_is_refused(cell, says):
    with pytest.raises(BadCell, match=f"^column 'answer': .*{says}"):
        answer(cell)


def test_alpacas_input_belongs_to_its_instruction():
    row = {"instruction": "Sort.", "input": "b a", "output": "a b"}
    assert (read(row).text, read(row).answer) == ("Sort.\n\nb a", "a b")
    assert read({**row, "input": "<noinput>"}).text == "Sort."
    assert read(row, template="{input}: {prompt}").text == "b a: Sort."
    assert row_to_prompt(row, choose_columns([row], "", "input"), Reading()).text == "Sort."


# ---- anything ------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.decimals(),
    st.dates(),
    st.builds(object),
    st.floats(width=32).map(np.float32),
)
parts = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "input_text", "image", None])},
    optional={"text": scalars, "image_url": scalars},
)
contents = st.one_of(scalars, parts, st.lists(st.one_of(parts, scalars), max_size=3))
roles = st.sampled_from(["user", "assistant", "system", "tool", "human", "gpt", "x", None])
messages = st.one_of(
    st.fixed_dictionaries({"role": roles, "content": contents}),
    st.fixed_dictionaries({"from": roles, "value": contents}),
    parts,
)
cells = st.recursive(
    st.one_of(scalars, messages, st.lists(messages, max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.text(max_size=4), inner, max_size=2),
        st.lists(inner, max_size=2).map(lambda v: np.array([*v, None], dtype=object)[:-1]),
    ),
    max_leaves=6,
)
printed = ("<object", "{'role'", '{"role"', "[{", "array(", "Decimal(", "datetime.", "nan", "b'")


@given(prompt=cells, answer=cells)
@settings(max_examples=100, deadline=None)
def test_any_cell_is_read_as_text_or_refused_and_never_printed(prompt, answer):
    try:
        found = read({"prompt": prompt, "answer": answer})
    except BadCell:
        return
    if found is not None and not isinstance(prompt, str):
        texts = [found.text, found.answer, *(m["content"] for m in found.before)]
        held = str(prompt) + str(answer)
        leaves = _texts(prompt) + _texts(answer)
        for text in texts:
            assert not any(text.startswith(p) for p in printed if p not in leaves), held


def _texts(value):
    """All texts inside a cell, in one."""
    if isinstance(value, (str, bytes)):
        return str(value) + (value.decode("latin-1") if isinstance(value, bytes) else "")
    if isinstance(value, dict):
        return "".join(map(_texts, value.values()))
    return "".join(map(_texts, value)) if isinstance(value, (list, tuple, np.ndarray)) else ""
