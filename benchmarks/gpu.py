"""Everything that only a GPU can show, in one run of at most eight minutes.

    python -m benchmarks.gpu --out DIR [--only PART ...] [--dry-run]

Correctness first, then speed beside the bounds of the card, then whole runs. Each part is a process
of its own with a time limit, so that no failure loses another part's figures. DIR/PART.json is
written when a part ends, DIR/result.json and DIR/result.txt after each. benchmarks/gpu.md says what
to install and how to read the result. --dry-run: every part tiny, on the CPU, in this process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu_parts
from benchmarks.gpu_parts import FULL, TINY, Scale

TOTAL_SECONDS = 480.0
# Part -> what it measures, and its limit in seconds.
PARTS: dict[str, tuple[Callable[[Scale], dict[str, Any]], float]] = {
    "bounds": (gpu_parts.bounds, 40),
    "correctness": (gpu_parts.correctness, 60),
    "decoding": (gpu_parts.decoding, 60),
    "waiting": (gpu_parts.waiting, 60),
    "turns": (gpu_parts.turns, 60),
    "update": (gpu_parts.update, 60),
    "lora": (gpu_parts.lora, 60),
    "memory": (gpu_parts.memory, 60),
    "resume": (gpu_parts.resume, 60),
    "deterministic": (gpu_parts.deterministic, 60),
    "default-run": (gpu_parts.default_run, 120),
    "W4": (gpu_parts.w4, 150),
    "W4-ragged": (gpu_parts.w4_ragged, 150),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU: a test")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part:
        write(options.out, options.part, run(options.part, FULL))
        return
    deadline = time.monotonic() + TOTAL_SECONDS
    results: dict[str, dict[str, Any]] = {}
    for part in options.only:
        if options.dry_run:
            results[part] = run(part, TINY)
            write(options.out, part, results[part])
        else:
            results[part] = run_apart(part, options.out, deadline - time.monotonic())
        text = table(results)
        (options.out / "result.json").write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        (options.out / "result.txt").write_text(text, "utf-8")
        print(table({part: results[part]}), end="", flush=True)
    failed = [part for part, result in results.items() if "error" in result]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(part: str, scale: Scale) -> dict[str, Any]:
    """The figures of one part, with its seconds; or the error that ended it."""
    started = time.perf_counter()
    try:
        result = PARTS[part][0](scale)
    except Exception:  # any failure of a part is a result, and the others go on
        result = {"error": traceback.format_exc()[-3000:]}
    return result | {"seconds": round(time.perf_counter() - started, 2)}


def run_apart(part: str, out: Path, seconds_left: float) -> dict[str, Any]:
    """The same in a process of its own: a CUDA error or a hang ends that process alone."""
    limit = min(PARTS[part][1], seconds_left)
    if limit < 5:
        return {"error": f"not run: the {TOTAL_SECONDS:g} s were over"}
    file = out / f"{part}.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), "--part", part]
    try:
        done = subprocess.run(command, timeout=limit, stderr=subprocess.PIPE, text=True)
    except subprocess.TimeoutExpired:
        return {"error": f"it took longer than {limit:.0f} s"}
    if not file.is_file():
        return {"error": f"the process ended with {done.returncode}: {done.stderr[-2000:]}"}
    return json.loads(file.read_text("utf-8"))


def write(out: Path, part: str, result: dict[str, Any]) -> None:
    (out / f"{part}.json").write_text(json.dumps(result, indent=1) + "\n", "utf-8")


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line a figure; an error by its last line."""
    lines = []
    for part, result in results.items():
        for name, value in result.items():
            if name == "error":
                value = "FAILED " + str(value).strip().splitlines()[-1]
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            lines.append(f"{part:12} {name:34} {shown}\n")
    return "".join(lines)


if __name__ == "__main__":
    main()
