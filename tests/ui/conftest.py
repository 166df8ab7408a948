"""A store, and what the page needs around it."""

from __future__ import annotations

import pytest
from recorded import FakeRuns

from grpo_core.errors import FieldProblem, InvalidConfig
from ui.server.views import Views


@pytest.fixture
def views(store):
    return Views(store)


@pytest.fixture
def runs(store):
    return FakeRuns(store)


@pytest.fixture
def no_such_model():
    return InvalidConfig(
        [
            FieldProblem(
                "model.name", "/nowhere", "there is no folder <b>/nowhere</b>", "Check the path."
            )
        ]
    )
