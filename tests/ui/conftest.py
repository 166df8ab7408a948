"""A store, and what the page needs around it."""

from __future__ import annotations

import pytest
from recorded import FakeRuns, FakeService, record_run

from grpo_core.errors import FieldProblem, InvalidConfig
from grpo_core.store import Store
from ui.page import build_app
from ui.server.views import Views


@pytest.fixture
def views(store):
    return Views(store)


@pytest.fixture
def runs(store):
    return FakeRuns(store)


@pytest.fixture(scope="module")
def recorded_page(tmp_path_factory):
    """A page over a store with one run, and the store. For tests that change neither."""
    store = Store(tmp_path_factory.mktemp("page") / "runs.sqlite")
    record_run(store)
    yield build_app(store, FakeRuns(store), FakeService()), store
    store.close()


@pytest.fixture
def no_such_model():
    return InvalidConfig(
        [
            FieldProblem(
                "model.name", "/nowhere", "there is no folder <b>/nowhere</b>", "Check the path."
            )
        ]
    )
