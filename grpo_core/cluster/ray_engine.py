"""Ray: start it or connect to it, let Ray Train place a run's workers, and leave nothing behind."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_core.cluster.address import LOCAL, address_in, check_installed, new_folder
from grpo_core.cluster.mailbox import Letter, Lost, Mailbox
from grpo_core.config import RunConfig
from grpo_core.config.devices import CPU
from grpo_core.environments.registry import named_environments
from grpo_core.errors import FieldProblem, InvalidConfig, StudioError
from grpo_core.rubric import plugin_files
from grpo_core.training.control import Command, Start
from grpo_core.training.distant import LAST

TAKE_SECONDS = 1.0
PATIENCE_SECONDS = 30 * 24 * 3600  # of workers that wait for a paused worker 0
STORE_BYTES = 256 << 20  # of Ray's own memory for events, when it is started here
RETRY_SECONDS = 1.0
LEAVE_SECONDS = 0.2  # for this process to leave Ray, before Ray is killed
TRAINER_SECONDS = 3.0  # for Ray Train to see that the workers have ended
# Read by Ray. A worker's death is then noticed soon; no usage report, no metrics, no change of
# the current folder, no copies of what workers print.
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
# Variables of the run's process that its workers get, wherever they are.
PASSED_ON = ("GRPO_", "HF_", "TRANSFORMERS_", "TOKENIZERS_")
# Ray has no setting against printing the errors of its other processes here.
PRINTS = "_worker_logs_enabled"
PACKAGE = Path(__file__).parents[1]

log = logging.getLogger("grpo_studio")


class RayEngine:
    """Ray Train in a thread of its own, which lives as long as Ray: the system ends Ray with it."""

    def __init__(self, config: RunConfig, folder: Path | None, environment: Mapping[str, str]):
        check_installed(f"train.workers = {config.train.workers}")
        self._config, self._checkpoints, self._environment = config, folder, environment
        self._address = address_in(environment) or LOCAL
        self._folder = new_folder()
        if folder is not None:  # so that the workers can say whether they see it
            folder.mkdir(parents=True, exist_ok=True)
        self._mailbox: Any = None
        self._taking: Any = None  # the letters to come
        self._lost: list[Letter] = []
        self._problem: StudioError | None = None
        self._there, self._over = threading.Event(), threading.Event()
        # Ray ends the process if a thread of it uses Ray after it has left.
        self._telling, self._left = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="ray", daemon=True)
        self._thread.start()

    # ---- for the driver --------------------------------------------------------------------------

    def letters(self, seconds: float) -> Sequence[Letter]:
        if not self._there.wait(seconds):
            return ()
        if self._problem is not None:
            raise self._problem
        import ray
        from ray.exceptions import RayError

        lost, self._lost = self._lost, []
        try:
            if self._taking is None:
                self._taking = self._mailbox.take.remote(TAKE_SECONDS)
            ready, _ = ray.wait([self._taking], timeout=seconds)
            if ready:
                letters, self._taking = ray.get(self._taking), None
                return [*letters, *lost]
        except RayError as problem:
            text = f"The run has lost its cluster ({type(problem).__name__}). "
            raise StudioError(text + "Press Resume to continue from the last checkpoint.") from None
        return lost

    def begin_from(self, life: int, start: Start) -> None:
        self._mailbox.start.remote(life, start)

    def tell(self, command: Command, life: int | None = None, question: int | None = None) -> None:
        with self._telling:
            # Without a mailbox the driver says it again when there are workers.
            if self._mailbox is not None and not self._over.is_set():
                self._mailbox.tell.remote(command, life, question)

    def missing(self) -> str:
        if not self._there.is_set():
            return f"Ray at {self._address} does not answer."
        needed = f"{self._config.train.workers} × {self._kind()}"
        import ray

        return (
            f"It needs {needed}. The cluster has {_amount(ray.cluster_resources(), self._kind())}, "
            f"of which {_amount(ray.available_resources(), self._kind())} are free."
        )

    def stop(self) -> None:
        with self._telling:
            self._over.set()
        LAST.append(self._leave)

    def _leave(self) -> None:
        """Leave Ray, and end it if it was started here."""
        if self._there.is_set():
            import ray

            self._left.wait(TRAINER_SECONDS)
            processes = _processes_of(self._folder)
            # Ray waits for its processes one after another, which takes seconds. This process must
            # have left before: it ends when its raylet does.
            killer = threading.Thread(target=_kill_after, args=(ray, processes), daemon=True)
            killer.start()
            ray.shutdown()
            killer.join()
            self._thread.join(LEAVE_SECONDS)
        for folder in (self._folder, self._storage()):
            shutil.rmtree(folder, ignore_errors=True)

    # ---- in the thread ---------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._connect()
            self._check_size()
            self._send_out()
        except StudioError as problem:
            self._problem = problem
        except Exception as problem:
            where = "start" if self._address == LOCAL else f"connect to {self._address}"
            text = f"Ray could not {where}: {type(problem).__name__}: {problem}"
            self._problem = StudioError(f"{text:.1000}")
        self._there.set()
        if self._problem is None:
            self._train()
        self._left.set()
        self._over.wait()
        time.sleep(60)  # until the process ends: the system ends Ray's processes with this thread

    def _connect(self) -> None:
        for name, value in SETTINGS.items():
            os.environ.setdefault(name, value)
        is_local = self._address == LOCAL
        here = os.pathsep.join(filter(None, (str(PACKAGE.parent), os.environ.get("PYTHONPATH"))))
        os.environ["PYTHONPATH"] = here
        if is_local and (cards := _cards(self._config.model.device, os.environ)):
            os.environ["CUDA_VISIBLE_DEVICES"] = cards
        import ray

        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {
            "address": self._address,
            "configure_logging": False,
            "log_to_driver": False,
        }
        if is_local:
            options |= {
                "include_dashboard": False,
                "num_cpus": max(_cores(), self._config.train.workers),
                "object_store_memory": STORE_BYTES,
                "_temp_dir": str(self._folder),
            }
        else:  # the same code on every machine
            options["runtime_env"] = {"py_modules": [str(PACKAGE)]}
        from ray._private import worker

        setattr(worker, PRINTS, False)
        ray.init(**options)

    def _kind(self) -> str:
        """What each worker takes of the cluster: a GPU, or a CPU core."""
        import ray

        wanted = self._config.model.device
        if wanted.startswith("cuda"):
            return "GPU"
        has_gpu = wanted != CPU and ray.cluster_resources().get("GPU", 0) >= 1
        return "GPU" if has_gpu else "CPU"

    def _check_size(self) -> None:
        """Raises InvalidConfig if the cluster is too small."""
        import ray

        workers, kind = self._config.train.workers, self._kind()
        there = int(ray.cluster_resources().get(kind, 0))
        if self._address == LOCAL and kind == "CPU":
            there = max(2, _cores())
        if workers > there:
            place = "this machine" if self._address == LOCAL else "the Ray cluster"
            what = {"GPU": "GPUs", "CPU": "CPU cores"}[kind]
            raise InvalidConfig(
                [
                    FieldProblem(
                        "train.workers",
                        workers,
                        f"{place} has {there} {what}, and each worker needs one",
                        f"Use at most {there}, or a larger cluster (--ray auto or HOST:PORT)"
                        + (", or the device cpu." if kind == "GPU" else "."),
                    )
                ]
            )

    def _send_out(self) -> None:
        """Start the mailbox, beside this process: it lives as long as this machine does."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        node = ray.get_runtime_context().get_node_id()
        mailbox: Any = ray.remote(Mailbox)
        self._mailbox = mailbox.options(
            num_cpus=0,
            max_concurrency=10_000,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        ).remote()

    def _train(self) -> None:
        """Let Ray Train start the workers, again and again, until the driver has seen enough."""
        while not self._over.is_set():
            reason = "Ray Train ended without a result."
            try:
                self._fit()
                # The workers have returned, so the driver gets their last letter now.
                self._over.wait(10 * TAKE_SECONDS)
            except Exception as problem:
                reason = f"Ray Train failed: {problem!s:.500}"
            if not self._over.wait(RETRY_SECONDS):
                self._lost.append((0, Lost(reason)))

    def _fit(self) -> None:
        from ray.train import FailureConfig, ScalingConfig
        from ray.train import RunConfig as RayRun
        from ray.train.torch import TorchConfig, TorchTrainer

        from grpo_core.cluster.losses import TellLosses
        from grpo_core.cluster.worker import Share, work

        use_gpu = self._kind() == "GPU"
        passed = {k: v for k, v in self._environment.items() if k.startswith(PASSED_ON)}
        share = Share(
            self._config,
            self._checkpoints,
            self._mailbox,
            passed,
            plugin_files(),
            named_environments(),
        )
        TorchTrainer(
            work,
            train_loop_config={"share": share},
            scaling_config=ScalingConfig(num_workers=self._config.train.workers, use_gpu=use_gpu),
            torch_config=TorchConfig(
                backend="cpu:gloo,cuda:nccl" if use_gpu else "gloo", timeout_s=PATIENCE_SECONDS
            ),
            run_config=RayRun(
                name="run",
                storage_path=str(self._storage()),
                failure_config=FailureConfig(max_failures=-1),
                callbacks=[TellLosses(self._mailbox)],
            ),
        ).fit()

    def _storage(self) -> Path:
        """Where Ray Train notes its state: all machines must see it, as they see checkpoints."""
        if self._address == LOCAL or self._checkpoints is None:
            return self._folder / "train"
        return self._checkpoints.with_name(f".{self._checkpoints.name}.ray")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cards(device: str, environment: Mapping[str, str]) -> str:
    """For CUDA_VISIBLE_DEVICES: the cards of "cuda:2,cuda:3", as numbers of the machine."""
    numbers = [int(name.removeprefix("cuda:")) for name in device.split(",") if ":" in name]
    visible = environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
    return ",".join(visible[n] if visible != [""] and n < len(visible) else str(n) for n in numbers)


def _amount(resources: Mapping[str, float], kind: str) -> str:
    return f"{resources.get(kind, 0):g}"


def _processes_of(folder: Path) -> list[int]:
    """The processes of a Ray that was started here with this folder; only on Linux."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            pid = int(path.name)
            parents[pid] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parents[pid] == os.getpid() and str(folder).encode() in _command(path):
                found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def _command(process: Path) -> bytes:
    return (process / "cmdline").read_bytes()


def _kill_after(ray: Any, processes: Sequence[int]) -> None:
    """Kill Ray's processes as soon as this process is no part of it any more."""
    while ray.is_initialized():
        time.sleep(0.02)
    time.sleep(LEAVE_SECONDS)
    for pid in processes:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
