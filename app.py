"""GRPO Studio's entry point: flags -> Store, RunManager, page -> launch.

The composition root: only this module connects the packages.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import importlib.util
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # no request leaves the machine
# Without this pandas sums up the times of all calls after each call. Monitoring is off.
os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(2**40))
os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")  # kept for the same sums

from grpo_core.cluster.address import use_cluster
from grpo_core.config import RunConfig
from grpo_core.config.devices import AUTO, CPU, describe_cpu, has_only_cpu, use_only
from grpo_core.errors import StudioError
from grpo_core.types import RunStatus

if TYPE_CHECKING:
    from grpo_core.preferences.reward_settings import RewardSettings
    from grpo_core.preflight.late import LateService
    from grpo_core.preflight.service import PreflightService
    from grpo_core.runs.device_queue import Machine
    from grpo_core.runs.limits import Limits, Visitors
    from grpo_core.runs.manager import RunManager
    from grpo_core.store import Store
    from grpo_core.store.snapshot import Snapshots
    from grpo_core.training.control import Train
    from ui.page import Page
    from ui.server.service import Service

ZERO = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
# Imported before torch, because it replaces torch's CUDA until a lease begins.
spaces = importlib.import_module("spaces") if ZERO else None

RECOVER_SECONDS = 1.0
STOP_SECONDS = 7.0  # for runs to save their state when the server ends; containers give ten in all
RECORD_SECONDS = 1.5  # then for its thread to record how it ended
# How long a computing thread may keep Python's lock (default 5 ms). The thread that records a run
# asks for the lock at every row.
SWITCH_SECONDS = 0.0005
EPHEMERAL = (
    "This Space loses its disk, and all runs, at every restart. Mount a bucket and set "
    "GRPO_SNAPSHOTS to a folder in it, or export what you want to keep."
)
LOOPBACK = ("127.0.0.1", "localhost", "::1")
M_ARENA_MAX = -8  # of mallopt in glibc


def share_heaps() -> None:
    """Let all threads share two heaps, where the C library is glibc.

    Otherwise each of the web server's forty threads gets its own heap, and memory that one thread
    frees is not used by the others.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").mallopt(M_ARENA_MAX, 2)


def main(argv: list[str] | None = None) -> int:
    """Serve the page until interrupted. Returns the exit code."""
    options = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    sys.setswitchinterval(SWITCH_SECONDS)
    share_heaps()
    try:
        auth = _credentials(options.auth)
        if options.mcp and not importlib.util.find_spec("mcp"):
            raise StudioError("--mcp needs the package mcp. Install it: pip install 'gradio[mcp]'.")
        use_cluster(options.ray)
        if options.report_to:
            from grpo_core.runs.mirror import check_trackers

            check_trackers(options.report_to)
        with _reserved_port(options.host, options.port) as port:
            return _serve(options, auth, port)
    except StudioError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _serve(
    options: argparse.Namespace, auth: tuple[str, str] | None, reserved: socket.socket
) -> int:
    from grpo_core.store import Store
    from grpo_core.store.example import add_example
    from grpo_core.store.snapshot import Snapshots

    snapshots = Snapshots(Path(options.db), Path(options.snapshots)) if options.snapshots else None
    if snapshots is not None and snapshots.restore():
        _say(f"restored {options.db} from {options.snapshots}")
    # Before Gradio is imported, which takes seconds: a wrong --db is reported at once.
    store = Store(options.db)
    _tell_what_is_missing(store)
    if options.example and not store.unlisted() and add_example(store):
        _say("added a recorded example run; delete it on the Runs tab")
    _say("starting the page …")
    with _no_collections():
        page, runs, service = _build(options, store, _storage(snapshots))
        reserved.close()
        _launch(page, options, auth)
    _say(f"GRPO Studio: {page.local_url}  ({runs.device}; runs in {store.path})")
    if page.share_url:
        _say(f"public: {page.share_url}")
    _in_background(service.load)
    _wait_for_signal(runs, snapshots)
    if runs.running:
        _say(f"saving what trains, for at most {options.stop_seconds:g} s …")
    runs.close(options.stop_seconds)
    # A run that did not end in time: Python would wait for its process.
    for child in multiprocessing.active_children():
        child.kill()
    runs.close(RECORD_SECONDS)
    if snapshots is not None:
        snapshots.renew(now=True)
    service.reward_models.close()
    if page.ingest is not None:
        page.ingest.close()
    service.imports.close()
    if (cluster := runs.machine.cluster) is not None:
        cluster.close()
    page.close(verbose=False)
    return 0


def _say(line: str) -> None:
    print(line, flush=True)


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Nothing that a start makes is garbage; looking for it takes a fifth of the start’s time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _in_background(load: Callable[[], None]) -> None:
    """Import torch while the page is already served. A failure ends the server."""

    def finish() -> None:
        try:
            load()
            _say("ready")
        except BaseException:
            traceback.print_exc()
            os.kill(os.getpid(), signal.SIGTERM)
        # The half a million objects of page and torch stay. Full collections would look through
        # them, which makes these slow and so rare that closed connections pile up: tens of MiB
        # under load.
        gc.collect()
        gc.freeze()

    _say("loading PyTorch; the page can be used meanwhile …")
    threading.Thread(target=finish, name="load", daemon=True).start()


def _tell_what_is_missing(store: Store) -> None:
    """Warn of a new, empty file beside checkpoints: the old one may have been deleted."""
    if not store.runs() and (lost := store.unlisted()):
        print(
            f"warning: {store.path} lists no run, but {len(lost)} runs left checkpoints beside it, "
            f"such as {lost[-1]}. If the file was deleted, stop the server and restore a copy.",
            file=sys.stderr,
            flush=True,
        )


def _build(
    options: argparse.Namespace, store: Store, storage: Callable[[], str] | None
) -> tuple[Page, RunManager, LateService]:
    from grpo_core.environments.registry import add_environments
    from grpo_core.preflight.late import LateService
    from grpo_core.records.imports import Imports
    from grpo_core.rubric import add_plugins
    from grpo_core.runs.limits import Visitors
    from grpo_core.runs.manager import RunManager
    from grpo_core.runs.mirror import mirrored
    from grpo_core.runs.reward_models import RewardModels
    from grpo_core.store.reward_models import folder_of
    from ui.page import build_app
    from ui.server.ingest import Desk
    from ui.server.visitor import visitor

    add_plugins(options.rewards)
    add_environments(options.environments)
    is_public = options.host not in LOOPBACK or options.share
    limits = _limits([*options.files, str(folder_of(store))], is_public)
    trainer = _trainer(options.rewards)
    used_bytes = _used_bytes(store, limits)

    def make_service() -> PreflightService:
        from grpo_core.preflight.service import PreflightService, ServiceOptions

        return PreflightService(
            store,
            ServiceOptions(
                in_use=lambda: runs.running,
                place=lambda config: runs.place(config),
                check=_check_reading(limits, used_bytes),
                train=trainer.run,
                lease_seconds=trainer.lease_seconds,
                may_push=not is_public,
            ),
        )

    visitors = Visitors(limits.per_visitor)

    def check_disk() -> None:
        limits.check_disk(used_bytes())

    def admit() -> None:
        check_disk()
        visitors.admit(visitor())  # last, so that what is refused does not count

    def check_reward_model(settings: RewardSettings) -> None:
        limits.check_base(settings.base)
        admit()

    service = LateService(
        store,
        make_service,
        lease_seconds=trainer.lease_seconds,
        may_push=not is_public,
        reward_models=RewardModels(store, check_reward_model, limits.minutes),
        imports=Imports(store, admit),
    )

    def check_room(config: RunConfig) -> None:
        service.release_models()  # its memory is free for the run
        trainer.machine.check_room(config)

    check = _StartCheck(store, limits, used_bytes, lambda config: runs.check_room(config), visitors)
    runs = RunManager(
        store,
        mirrored(trainer.run, store, options.report_to),
        check=check.one,
        foresee=check.several,
        machine=replace(trainer.machine, check_room=check_room),
        limit=lambda seconds: limits.reason_to_stop(seconds, used_bytes()),
    )
    if trainer.lease_seconds is not None:
        service.load()  # the page says from the start how much fits into a lease
    asked = cast("Service", service)  # it has every method of PreflightService
    page = build_app(store, runs, asked, bool(os.environ.get("SPACE_ID")), storage)
    page.check_upload = check_disk
    page.ingest = Desk(store, options.ingest_token, check_disk) if options.ingest_token else None
    return page, runs, service


def _storage(snapshots: Snapshots | None) -> Callable[[], str] | None:
    """Says whether runs outlive the disk. None for an ordinary disk."""
    if snapshots is not None:
        return snapshots.state
    return (lambda: EPHEMERAL) if os.environ.get("SPACE_ID") else None


def _limits(folders: Sequence[str], is_public: bool) -> Limits:
    """The limits in the environment; on a public server also those on files and judges."""
    from grpo_core.config.places import ROOTS_VARIABLE
    from grpo_core.config.server_urls import ROLLOUT_HOSTS
    from grpo_core.rubric.judge import HOSTS_VARIABLE
    from grpo_core.runs.limits import from_environment
    from grpo_core.tasks.table import cache_folder

    if not is_public:
        return from_environment(os.environ, None)
    roots = [*map(Path, folders), cache_folder().parent / "uploads"]
    os.environ[ROOTS_VARIABLE] = os.pathsep.join(map(str, roots))
    # The address of a server that a visitor types must not reach hosts of the inner network.
    os.environ.setdefault(HOSTS_VARIABLE, "")
    os.environ.setdefault(ROLLOUT_HOSTS, "")
    return from_environment(os.environ, roots)


def _used_bytes(store: Store, limits: Limits) -> Callable[[], int]:
    """Bytes of all files that visitors made this server keep; 0 without a limit."""
    from gradio.utils import get_upload_folder

    from grpo_core.checkpoint_files import used_bytes
    from grpo_core.tasks.table import cache_folder
    from ui.tabs.exports import exports_root

    def count() -> int:
        if limits.disk_mib is None:
            return 0
        # Prompts, uploads and verdicts; exports; what Gradio keeps of both.
        folders = (cache_folder().parent, exports_root(), Path(get_upload_folder()))
        return store.used_bytes() + used_bytes(folders)

    return count


def _check_reading(limits: Limits, used_bytes: Callable[[], int]) -> Callable[[RunConfig], None]:
    """The check before Preflight and previews, which keep the prompts that they read."""

    def check(config: RunConfig) -> None:
        limits.check(config)
        limits.check_disk(used_bytes())

    return check


@dataclass(frozen=True)
class _StartCheck:
    """The checks of runs before they start. They raise StudioError."""

    store: Store
    limits: Limits
    used_bytes: Callable[[], int]
    check_room: Callable[[RunConfig], None]
    visitors: Visitors

    def one(self, config: RunConfig) -> None:
        """A run that starts now."""
        from grpo_core.models import check_model  # imports torch
        from ui.server.visitor import visitor

        self.limits.check(config, self._num_queued())
        self.limits.check_disk(self.used_bytes())
        check_model(config.model)
        self.check_room(config)
        self.visitors.admit(visitor())  # last, so that a refused run does not count

    def several(self, configs: Sequence[RunConfig]) -> None:
        """Runs that would start now one after another; nothing is counted."""
        from ui.server.visitor import visitor

        waiting = self._num_queued()
        is_free = not any(run.trains_here for run in self.store.runs())
        for i, config in enumerate(configs):
            # The first one does not wait if nothing runs.
            self.limits.check(config, waiting + max(0, i - is_free))
        self.limits.check_disk(self.used_bytes())
        self.visitors.check(visitor(), len(configs))

    def _num_queued(self) -> int:
        return sum(run.status is RunStatus.QUEUED for run in self.store.runs())


@dataclass(frozen=True, slots=True)
class _Trainer:
    """How this server trains."""

    run: Train  # a whole run, or the one step of Preflight
    machine: Machine
    lease_seconds: int | None = None  # of a lease of ZeroGPU


def _trainer(rewards: Sequence[str]) -> _Trainer:
    from grpo_core.environments.registry import named_environments
    from grpo_core.runs.device_queue import Machine
    from grpo_core.runs.operator_files import load_operator_files
    from grpo_core.runs.ray_cluster import RayCluster, cluster_of
    from grpo_core.runs.subprocess_trainer import in_subprocess, train_later, warm_up

    if spaces is None:
        # Starts now and goes on beside what follows, so that the first run need not wait.
        warm_up()
        load = partial(load_operator_files, rewards, named_environments())
        run = in_subprocess(train_later, load)
        if address := cluster_of(os.environ):
            # Its devices are named by kind only: Ray chooses among them.
            return _Trainer(run, Machine(devices=(AUTO, CPU), cluster=RayCluster(address)))
        if has_only_cpu(os.environ):
            return _Trainer(run, Machine(describe_cpu(), (CPU,)))

        from grpo_core.models.device import describe_machine, device_names
        from grpo_core.preflight.room import check_room

        return _Trainer(run, Machine(describe_machine(), device_names(), check_room))

    from grpo_core.runs.zerogpu import leased, one_device, seconds_from
    from grpo_core.training.trainer import train

    # Outside a lease there is no GPU: questions about models are answered on the CPU.
    use_only(CPU)
    seconds = seconds_from(os.environ)
    in_lease = leased(train, spaces.GPU, seconds)
    machine = Machine(f"ZeroGPU, leases of {seconds} s", check_room=one_device)
    return _Trainer(in_lease, machine, seconds)


def _launch(page: Page, options: argparse.Namespace, auth: tuple[str, str] | None) -> None:
    from ui.page import launch_options
    from ui.server.connections import limit_connections
    from ui.server.login import Login

    launch = partial(
        page.launch,
        server_name=options.host,
        server_port=options.port,
        share=options.share,
        prevent_thread_lock=True,
        quiet=True,
        mcp_server=options.mcp,
        **launch_options(page, options.host, options.share, Login(*auth) if auth else None),
    )
    try:
        launch()
    except OSError as error:  # from Gradio, if the port was taken after we checked it
        raise _port_problem(options.host, options.port, str(error)) from None
    limit_connections(page.server)


def _wait_for_signal(runs: RunManager, snapshots: Snapshots | None) -> None:
    """Wait for Ctrl-C or a termination. Gradio handles Ctrl-C only.

    Meanwhile renew the snapshot, and mark runs whose process died as interrupted: another process
    may have trained them on this store.
    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    while not stop.wait(RECOVER_SECONDS):
        if snapshots is not None:
            snapshots.renew()
        runs.recover()


def _credentials(text: str | None) -> tuple[str, str] | None:
    if text is None:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise StudioError("--auth needs both parts. Write --auth USER:PASSWORD.")
    return user, password


def _reserved_port(host: str, port: int) -> socket.socket:
    """A socket that holds the port while the page is built, which takes seconds.

    Of two servers that start together one gets it, and the other one is refused at once. Raises
    StudioError.
    """
    if not 0 < port < 65536:
        raise StudioError(f"--port {port} is not a port. Use 1 to 65535; 7860 is usual.")
    reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        reserved.bind((host, port))
        reserved.listen(1)  # without it, another server could bind the same port
    except OSError as error:
        reserved.close()
        raise _port_problem(host, port, str(error.strerror)) from None
    return reserved


def _port_problem(host: str, port: int, problem: str) -> StudioError:
    return StudioError(
        f"--port {port} on {host} cannot be used: {problem.rstrip('.')}. Stop the program that "
        f"uses it, or choose another port, e.g. --port {port % 65535 + 1}."
    )


def _parser() -> argparse.ArgumentParser:
    on_space = bool(os.environ.get("SPACE_ID"))
    parser = argparse.ArgumentParser(
        description="Train language models with GRPO in the browser and watch every group learn."
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if on_space else "127.0.0.1"),
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
        "--no-example",
        dest="example",
        action="store_false",
        help="do not show a recorded example run in a new file",
    )
    _add_folders_and_files(parser)
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="train on a Ray cluster: auto for that of this machine, or HOST:PORT (default: on "
        "this machine; see docs/scale.md)",
    )
    parser.add_argument(
        "--share", action="store_true", help="create a public link through Gradio's servers"
    )
    parser.add_argument(
        "--stop-seconds",
        metavar="N",
        type=float,
        default=STOP_SECONDS,
        help="how long a run may take to save itself when the server ends (default "
        f"{STOP_SECONDS:g}); a model of billions of parameters needs more",
    )
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help="require this login before showing anything"
    )
    parser.add_argument(
        "--ingest-token",
        metavar="TOKEN",
        default=os.environ.get("GRPO_INGEST_TOKEN", ""),
        help="take what attached trainers elsewhere record, at /studio/ingest, from whoever sends "
        "this token of 16 or more characters (default: GRPO_INGEST_TOKEN; without it, nothing)",
    )
    parser.add_argument(
        "--mcp",
        action="store_true",
        help="offer the named endpoints as tools of the Model Context Protocol, at /gradio_api/mcp",
    )
    return parser


def _add_folders_and_files(parser: argparse.ArgumentParser) -> None:
    """What the server may read, run and write to beside its store."""
    parser.add_argument(
        "--files",
        metavar="FOLDER",
        action="append",
        default=[],
        help="when others can reach this server: a folder from which models and prompt files may "
        "be read; may be repeated. Default: none",
    )
    parser.add_argument(
        "--snapshots",
        metavar="FOLDER",
        default=os.environ.get("GRPO_SNAPSHOTS"),
        help="keep a copy of the SQLite file here, renewed every minute, and restore it when the "
        "file is missing (for containers with a mounted bucket)",
    )
    parser.add_argument(
        "--rewards",
        metavar="FILE.py",
        action="append",
        default=[],
        help="a plug-in file with reward functions f(completions, prompts, **columns); may be "
        "repeated. It runs in a sandbox, but load only files that you trust",
    )
    parser.add_argument(
        "--environments",
        metavar="FILE.py|openenv:URL[,VARIABLE]",
        action="append",
        default=[],
        help="a file whose classes are environments with tools, or an OpenEnv server and perhaps "
        "the variable with its token; may be repeated. Files run in a sandbox, but load only what "
        "you trust",
    )
    parser.add_argument(
        "--report-to",
        metavar="TRACKER",
        action="append",
        default=[],
        help="mirror the curves and some groups of every run to trackio, wandb, tensorboard or "
        "mlflow; may be repeated. Each needs its package, and writes where its own settings say",
    )


if __name__ == "__main__":
    sys.exit(main())
