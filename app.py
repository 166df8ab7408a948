"""GRPO Studio: the composition root. Flags -> Store, RunManager, page -> launch. The only place that wires."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib.util
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
from functools import partial
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no request leaves the machine
os.environ.setdefault(
    "GRADIO_ANALYTICS_CACHE_FREQUENCY", str(2**40)
)  # else pandas sums up every call's time after each call, and monitoring is off
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # kept for the same sums

from grpo_core.config import RunConfig
from grpo_core.errors import StudioError
from grpo_core.types import RunStatus

ZERO = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
if ZERO:
    import spaces  # before torch, whose CUDA it replaces until a lease begins

RECOVER_SECONDS = 1.0
# A thread that computes gives Python's lock up after this long, not after 5 ms: what records a run asks for the lock at every row.
SWITCH_SECONDS = 0.0005
EPHEMERAL = "This Space's disk is lost at every restart, and the runs with it. Mount a bucket and set GRPO_SNAPSHOTS to a folder in it, or export what you want to keep."
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def share_heaps() -> None:
    """At most two heaps for all threads, where the C library is glibc: it gives each of the web server's forty its own, and what one frees no other uses."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(-8, 2)  # M_ARENA_MAX


def main(argv: list[str] | None = None) -> int:
    """Serve the page until interrupted; returns the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)
    share_heaps()
    try:
        auth = _credentials(options.auth)
        if options.mcp and not importlib.util.find_spec("mcp"):
            raise StudioError("--mcp needs the package mcp. Install it: pip install 'gradio[mcp]'.")
        _check_port(options.host, options.port)
        return _serve(options, auth)
    except StudioError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _serve(options: argparse.Namespace, auth: tuple[str, str] | None) -> int:
    from grpo_core.rubric.judge import HOSTS_VARIABLE
    from grpo_core.runs.limits import Visitors, from_environment
    from grpo_core.store import Store
    from grpo_core.store.snapshot import Snapshots
    from grpo_core.tasks.source import ROOTS_VARIABLE
    from grpo_core.tasks.table import cache_folder

    snapshots = Snapshots(Path(options.db), Path(options.snapshots)) if options.snapshots else None
    if snapshots is not None and snapshots.restore():
        print(f"restored {options.db} from {options.snapshots}", flush=True)
    store = Store(
        options.db
    )  # before the seconds of importing torch: a wrong --db is answered at once
    from grpo_core.models import check_model, describe_device, pick_device
    from grpo_core.models.device import DEVICE_VARIABLE
    from grpo_core.preflight.service import PreflightService
    from grpo_core.rubric import add_plugins
    from grpo_core.runs.manager import RunManager
    from grpo_core.runs.subprocess_trainer import apart, warm_up
    from grpo_core.training.trainer import train
    from ui.page import build_app, launch_options
    from ui.server.guard import visitor

    add_plugins(options.rewards)
    public = options.host not in LOOPBACK or options.share
    roots = [*map(Path, options.files), cache_folder().parent / "uploads"] if public else None
    limits = from_environment(os.environ, roots)
    visitors = Visitors(limits.per_visitor)
    if roots is not None:
        os.environ[ROOTS_VARIABLE] = os.pathsep.join(map(str, roots))
        os.environ.setdefault(
            HOSTS_VARIABLE, ""
        )  # a judge's address typed by a stranger must not reach inner hosts

    def check(config: RunConfig) -> None:
        limits.check(config, sum(r.status is RunStatus.QUEUED for r in store.runs()))
        limits.check_disk(store.used_bytes() if limits.disk_mib else 0)
        check_model(config.model)
        visitors.admit(visitor())  # last: what is refused is not counted

    seconds, device = None, ""
    if not ZERO:
        warm_up(train)  # before a run can begin: it goes on by itself, beside what follows
    else:
        from grpo_core.runs.zerogpu import leased, seconds_from

        os.environ[DEVICE_VARIABLE] = (
            "cpu"  # outside a lease there is no GPU: questions beside a run are answered on the CPU
        )
        seconds = seconds_from(os.environ)
        train, device = leased(train, spaces.GPU, seconds), f"ZeroGPU, leases of {seconds} s"
    runs = RunManager(
        store,
        train if ZERO else apart(train, partial(add_plugins, options.rewards)),
        check=check,
        device=device or describe_device(pick_device()),
        limit=lambda seconds: limits.reason_to_stop(
            seconds, store.used_bytes() if limits.disk_mib else 0
        ),
    )
    space = bool(os.environ.get("SPACE_ID"))
    storage = snapshots.state if snapshots is not None else (lambda: EPHEMERAL) if space else None
    page = build_app(
        store,
        runs,
        PreflightService(
            store,
            lambda: runs.current is not None,
            limits.check,
            train,
            seconds,
            may_push=not public,
        ),
        space,
        storage,
    )
    page.launch(
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        auth=auth,
        prevent_thread_lock=True,
        quiet=True,
        mcp_server=options.mcp,
        **launch_options(page, options.host, share=options.share, auth=auth),
    )
    # The page's half a million objects stay. Looked through at every full collection they made these slow, and so rare that the remains of
    # connections piled up: tens of MiB under load.
    gc.collect()
    gc.freeze()
    print(f"GRPO Studio: {page.local_url}  ({runs.device}; runs in {store.path})", flush=True)
    if page.share_url:
        print(f"public: {page.share_url}", flush=True)

    # Gradio handles Ctrl-C only: a terminated server must still end its run's record cleanly.
    asked = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: asked.set())
    while not asked.wait(RECOVER_SECONDS):
        if snapshots is not None:
            snapshots.renew()
        runs.recover()  # a run of another process, killed while this one only watched, must not look alive for ever
    runs.close()
    for child in (
        multiprocessing.active_children()
    ):  # a run that did not end in time: Python would wait for it
        child.kill()
    if snapshots is not None:
        snapshots.renew(now=True)
    page.close(verbose=False)
    return 0


def _credentials(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise StudioError("--auth needs both parts. Write --auth USER:PASSWORD.")
    return user, password


def _check_port(host: str, port: int) -> None:
    if not 0 < port < 65536:
        raise StudioError(f"--port {port} is no port. Use a number from 1 to 65535; 7860 is usual.")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StudioError(
                f"--port {port} on {host} cannot be used: {error.strerror}. Stop what uses it, or choose another, "
                f"e.g. --port {port % 65535 + 1}."
            ) from None


def _parser() -> argparse.ArgumentParser:
    spaces = bool(os.environ.get("SPACE_ID"))
    parser = argparse.ArgumentParser(
        description="Train language models with GRPO in the browser and watch every group learn."
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if spaces else "127.0.0.1"),
        help="address to listen on (default 127.0.0.1: this machine only)",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=int(os.environ.get("GRADIO_SERVER_PORT", "7860")),
        help="default 7860",
    )
    parser.add_argument(
        "--db",
        default="runs/grpo.sqlite",
        help="the SQLite file with all runs (default runs/grpo.sqlite)",
    )
    parser.add_argument(
        "--files",
        metavar="FOLDER",
        action="append",
        default=[],
        help="off this machine only: a folder below which models and prompt files may be named; may be repeated. Default: none",
    )
    parser.add_argument(
        "--snapshots",
        metavar="FOLDER",
        default=os.environ.get("GRPO_SNAPSHOTS"),
        help="keep a copy of the file here, renewed every minute, and restore it when the file is gone (for containers with a mounted bucket)",
    )
    parser.add_argument(
        "--share", action="store_true", help="a public link through Gradio's servers"
    )
    parser.add_argument(
        "--rewards",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a plug-in file with reward functions f(completions, prompts, **columns); may be repeated. Runs locked up, but is yours to trust",
    )
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help="ask for these before showing anything"
    )
    parser.add_argument(
        "--mcp",
        action="store_true",
        help="offer the named endpoints as tools of the Model Context Protocol, at /gradio_api/mcp",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
