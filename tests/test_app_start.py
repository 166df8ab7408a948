"""app.py as it starts: the port, and a file that was deleted between two starts."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from locked_server import free_port

import app
from grpo_core.config.devices import VARIABLE, has_only_cpu
from grpo_core.errors import StudioError
from grpo_core.store import Store


def test_of_two_servers_that_start_together_one_gets_the_port():
    port = free_port()
    with app._reserved_port("127.0.0.1", port), pytest.raises(StudioError) as refusal:
        app._reserved_port("127.0.0.1", port)
    line = str(refusal.value)
    assert line.startswith(f"--port {port} on 127.0.0.1 cannot be used: Address already in use.")
    assert f"--port {port + 1}" in line
    app._reserved_port("127.0.0.1", port).close()  # free again at once


def test_a_start_that_fails_leaves_garbage_collection_on():
    with app._no_collections():
        assert not gc.isenabled()
    with pytest.raises(StudioError), app._no_collections():
        raise StudioError("no page")
    assert gc.isenabled()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_a_number_that_is_no_port_is_refused(port):
    with pytest.raises(StudioError, match="is not a port"):
        app._reserved_port("127.0.0.1", port)


def test_a_port_taken_at_the_last_moment_is_one_line(monkeypatch, store):
    class Taken:
        def launch(self, **_):
            raise OSError("Cannot find empty port in range: 7860-7860.")

    monkeypatch.setattr("ui.page.launch_options", lambda *_: {})
    options = app._parser().parse_args(["--port", "7860"])
    with pytest.raises(
        StudioError, match=r"--port 7860 on 127\.0\.0\.1 cannot be used: Cannot find"
    ):
        app._launch(Taken(), options, None)


def test_a_deleted_file_is_told_when_its_runs_left_checkpoints(tmp_path, capsys):
    store = Store(tmp_path / "new.sqlite")
    app._tell_what_is_missing(store)
    assert capsys.readouterr().err == ""
    store.checkpoint_folder("20261128-070000-abcd").mkdir(parents=True)
    app._tell_what_is_missing(store)
    assert "1 runs left checkpoints beside it, such as 20261128-070000-abcd" in (
        capsys.readouterr().err
    )


@pytest.mark.skipif(not has_only_cpu(os.environ), reason="a GPU is named by torch")
def test_the_page_is_built_before_torch_is_imported(tmp_path):
    code = (
        "import sys, app; from grpo_core.store import Store\n"
        f"options = app._parser().parse_args(['--db', {str(tmp_path / 'runs.sqlite')!r}])\n"
        "page, runs, service = app._build(options, Store(options.db), None)\n"
        "assert not {'torch', 'transformers', 'plotly'} & set(sys.modules)\n"
        "from grpo_core.models.device import describe_machine, device_names\n"
        "assert (runs.device, runs.machine.devices) == (describe_machine(), device_names())"
    )
    folder = Path(app.__file__).parent
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("variable", "file", "only_cpu"),
    [("", "tty", True), ("", "nvidia0", False), ("", "kfd", False), ("cpu", "nvidia0", True)],
)
def test_a_gpu_is_expected_where_it_has_a_file(variable, file, only_cpu, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    (tmp_path / file).touch()
    assert has_only_cpu({VARIABLE: variable}, tmp_path) is only_cpu
