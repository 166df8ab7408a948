"""How fast and how large is a step beside TRL's?

    python -m benchmarks.speed [--peer trl] [--workload NAME ...] [--pairs 3] [--threads N] [--json]

Every pair runs both sides in processes of their own, one after the other. Both get the same model
folder, prompts, lengths, hyper-parameters and number of threads. A side's time is that of its
steps, without loading; its memory is the process's peak resident size, or the device's peak on
CUDA. The peer needs tests/requirements.txt. `python -m grpo_core bench` is the same command.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.workloads import WORKLOADS, make_folder

RESULTS = Path(__file__).parent / "results"
Side = dict[str, float]  # as sides.run_side returns it


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One workload: ours and the peer in turn. Medians, and the ratios pair by pair."""
    work = WORKLOADS[name]
    peer = work.peer or options.peer
    sides: dict[str, list[Side]] = {"ours": [], peer: []}
    failed: dict[str, str] = {}  # a side that failed is not tried again; the other one goes on
    with tempfile.TemporaryDirectory() as folder:
        if work.shape:
            make_folder(work, Path(folder))
        for n in range(options.pairs):
            for side, results in sides.items():
                if side in failed:
                    continue
                try:
                    result = run_in_process(side, name, folder, options.threads)
                except SideFailed as error:
                    failed[side] = str(error)
                    print(f"{name} {side} failed: {error}", file=sys.stderr, flush=True)
                    continue
                results.append(result)
                print(
                    f"{name} pair {n + 1} {side}: {result['step_seconds']:.3f} s/step, "
                    f"{result['memory_mib']:.0f} MiB",
                    file=sys.stderr,
                    flush=True,
                )
    ours, theirs = sides["ours"], sides[peer]
    pairs = list(zip(ours, theirs, strict=False))
    speed = [t["step_seconds"] / o["step_seconds"] for o, t in pairs]
    memory = [o["memory_mib"] / t["memory_mib"] for o, t in pairs]
    return {
        "workload": name,
        "help": work.help,
        "peer_name": peer,
        "threads": options.threads,
        "speed_ratio": statistics.median(speed) if speed else None,
        "memory_ratio": statistics.median(memory) if memory else None,
        "speed_ratios": speed,
        "memory_ratios": memory,
        "pairs": options.pairs,
        "ours": medians(ours) if ours else None,
        "peer": medians(theirs) if theirs else None,
        "failed": failed,
    }


class SideFailed(Exception):
    """A side ended with an error; the text is the end of what it wrote."""


def run_in_process(side: str, name: str, folder: str, threads: int) -> Side:
    # Both sides on the same device: a workload for the CPU does not see a GPU.
    device = {} if WORKLOADS[name].cuda else {"CUDA_VISIBLE_DEVICES": ""}
    options = ["--side", side, "--workload", name, "--folder", folder, "--threads", str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.speed", *options],
        capture_output=True,
        text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        | device,
        cwd=Path(__file__).parents[1],
    )
    if done.returncode:
        raise SideFailed(done.stderr[-2000:])
    return json.loads(done.stdout.strip().splitlines()[-1])


def medians(runs: list[Side]) -> Side:
    return {key: statistics.median(r[key] for r in runs) for key in runs[0]}


def chosen(names: Iterable[str] | None) -> list[str]:
    """Names of the workloads that begin with one of `names`; W1 to W4 without a name.

    Workloads that need CUDA are left out where there is none.
    """
    import torch

    wanted = tuple(names or ("W",))
    found = [
        name
        for name, work in WORKLOADS.items()
        if name.startswith(wanted) and (torch.cuda.is_available() or not work.cuda)
    ]
    if not found:
        known = ", ".join(WORKLOADS)
        raise SystemExit(
            f"--workload {' '.join(wanted)}: this machine has no such workload. Known: {known}."
        )
    return found


def report(result: dict[str, Any]) -> None:
    ours, theirs = result["ours"], result["peer"]
    if not ours or not theirs:
        known = f"ours {ours}" if ours else f"{result['peer_name']} {theirs}"
        print(f"{result['workload']:14} {known}; failed: {', '.join(result['failed'])}")
        return
    pairs = ", ".join(f"{ratio:.2f}" for ratio in result["speed_ratios"])
    phases = ", ".join(
        f"{key.removesuffix('_seconds')} {seconds:.3f}"
        for key, seconds in ours.items()
        if key.endswith("_seconds") and key != "step_seconds"
    )
    print(
        f"{result['workload']:14} ours {ours['step_seconds']:8.3f} s {ours['memory_mib']:7.0f} MiB "
        f"{ours['tokens_per_second']:8.0f} tokens/s   {result['peer_name']} "
        f"{theirs['step_seconds']:8.3f} s {theirs['memory_mib']:7.0f} MiB   "
        f"speed × {result['speed_ratio']:.2f} ({pairs})   memory × {result['memory_ratio']:.2f}   "
        f"{phases}"
    )


def growth(results: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """How the seconds of a step grow with size, of the workloads growth-<letter><size>.

    On both sides: as size^exponent, and per unit of size (slope).
    """
    families: dict[str, list[tuple[int, float, float]]] = {}
    for r in results:
        match = re.fullmatch(r"(growth-[A-Z])(\d+)", r["workload"])
        if match and r["ours"] and r["peer"]:
            seconds = r["ours"]["step_seconds"], r["peer"]["step_seconds"]
            families.setdefault(match[1], []).append((int(match[2]), *seconds))
    grown: dict[str, dict[str, float]] = {}
    for family, rows in families.items():
        if len(rows) < 2:
            continue
        sizes, ours, theirs = zip(*sorted(rows), strict=True)
        found = grown[family] = {}
        for side, seconds in (("ours", ours), ("peer", theirs)):
            logs = [[math.log(x) for x in values] for values in (sizes, seconds)]
            found[f"{side}_exponent"] = statistics.linear_regression(*logs).slope
            found[f"{side}_slope"] = statistics.linear_regression(sizes, seconds).slope
        found["slope_ratio"] = found["ours_slope"] / found["peer_slope"]
    return grown


def machine() -> dict[str, Any]:
    from importlib.metadata import PackageNotFoundError, version

    import torch

    device = f"{os.cpu_count()} CPU cores, {platform.machine()}"
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    versions = {}
    for name in ("torch", "transformers", "trl"):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"device": device, "python": platform.python_version(), **versions}


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", choices=["trl"], default="trl")
    workloads = "; ".join(f"{name}: {work.help}" for name, work in WORKLOADS.items())
    parser.add_argument("--workload", nargs="+", help=workloads.replace("%", "%%"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--save", help=f"write the result to {RESULTS.name}/NAME.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    parser.add_argument(
        "--json", action="store_true", help="the last line is a list of all results"
    )
    return parser


def usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def main() -> None:
    options = make_parser().parse_args()
    if options.side:
        from benchmarks.sides import run_side

        work = WORKLOADS[options.workload[0]]
        print(json.dumps(run_side(options.side, work, options.folder, options.threads)))
        return
    results = [measure(name, options) for name in chosen(options.workload)]
    grown = growth(results)
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        saved = {"machine": machine(), "results": results, "growth": grown}
        text = json.dumps(saved, indent=1) + "\n"
        (RESULTS / f"{options.save}.json").write_text(text, "utf-8")
    if options.json:
        print(json.dumps(results))
        return
    for result in results:
        report(result)
    for family, g in grown.items():
        print(
            f"{family}: seconds grow as size^{g['ours_exponent']:.2f}, the peer's as "
            f"size^{g['peer_exponent']:.2f}; per unit {g['slope_ratio']:.2f} of the peer's"
        )


if __name__ == "__main__":
    main()
