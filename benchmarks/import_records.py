"""How fast a large table of completions is imported, and how much memory that takes.

    python -m benchmarks.import_records [--mib 200]

A JSONL file of groups of 8 completions of about 600 characters, with two criteria, a reward and an
advantage, is imported by the command in a process of its own, twice: the second adds nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WORDS = ("we", "add", "two", "numbers", "then", "carry", "the", "one", "is", "right", "minus")


def write_table(path: Path, mib: int) -> int:
    """A table of about this size. Returns its rows."""
    r, rows, group = random.Random(0), 0, 0
    with path.open("w", encoding="utf-8") as out:
        while out.tell() < mib << 20:
            prompt = f"{group}: " + " ".join(r.choices(WORDS, k=30))
            rewards = [float(r.random() < 0.5) for _ in range(8)]
            mean = sum(rewards) / 8
            for reward in rewards:
                text = " ".join(r.choices(WORDS, k=110))
                row = {"step": group // 8, "group": group, "prompt": prompt, "completion": text}
                row |= {"correct": reward, "brief": 0.25, "reward": reward + 0.25}
                out.write(json.dumps(row | {"advantage": reward - mean}) + "\n")
            rows, group = rows + 8, group + 1
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=200, help="size of the table (default 200)")
    mib = parser.parse_args().mib
    with tempfile.TemporaryDirectory() as folder:
        table, db = Path(folder) / "table.jsonl", Path(folder) / "runs.sqlite"
        rows = write_table(table, mib)
        command = [sys.executable, "-m", "grpo_core", "import", str(table), "--db", str(db)]
        for which in ("first import", "second import"):
            started = time.monotonic()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds = time.monotonic() - started
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(
                f"{which}: {rows:,} completions, {mib} MiB in {seconds:.1f} s, "
                f"at most {peak:.0f} MiB of memory; file {db.stat().st_size / 2**20:.0f} MiB"
            )
            print(f"    {done.stdout.splitlines()[0]}")


if __name__ == "__main__":
    main()
