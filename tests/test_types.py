"""Records that several packages share."""

from __future__ import annotations

import pytest
from stored import raw, recorded, rollout

from grpo_core.types import Group, GroupsScored, Prompt

SYSTEM = {"role": "system", "content": "Be brief."}
DOCUMENT = {"role": "user", "content": "Document 3"}


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ([], "Sum up."),
        ([SYSTEM], "Sum up."),
        ([DOCUMENT], "user: Document 3\n\nuser: Sum up."),
        ([SYSTEM, DOCUMENT], "system: Be brief.\n\nuser: Document 3\n\nuser: Sum up."),
    ],
)
def test_the_record_of_a_chat_shows_all_its_messages(store, before, text):
    prompt = Prompt("id", "Sum up.", "4", "file", {"before": before})
    assert prompt.conversation == text
    scored = Group(prompt, (rollout(),), 0.5, 0.7, "informative")
    recorded(store, GroupsScored(1, (scored,)))
    assert raw(store, "SELECT prompt FROM groups") == [(text,)]
