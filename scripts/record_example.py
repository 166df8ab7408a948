"""Record the example run that ships with the product (grpo_core/store/example.py).

    python -m scripts.record_example

Trains the default run on this machine, measures every group of a step after its update, and writes
grpo_core/store/example.sqlite.xz. To stay small it keeps no checkpoint, and tokens of the first and
every tenth step only. Half a minute on two cores.
"""

from __future__ import annotations

import lzma
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from grpo_core import cli
from grpo_core.store.example import EXAMPLE_FILE

MAX_BYTES = 300_000  # of the compressed file
NAME = "Sums of three numbers"
MEASURED = "train.after_records=8"  # all groups of a step
KEPT_TOKENS = "SELECT id FROM groups WHERE step = 1 OR step % 10 = 0"


def pack(path: Path) -> bytes:
    """The store at `path`, made small and compressed."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("DELETE FROM checkpoints")
        conn.execute(
            "DELETE FROM token_records WHERE rollout_id IN "
            f"(SELECT id FROM rollouts WHERE group_id NOT IN ({KEPT_TOKENS}))"
        )
        small = path.with_name("small.sqlite")
        conn.execute("VACUUM INTO ?", (str(small),))
    return lzma.compress(small.read_bytes(), preset=9 | lzma.PRESET_EXTREME)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "example.sqlite"
        if code := cli.main(["train", "--db", str(path), "--name", NAME, "--set", MEASURED]):
            return code
        packed = pack(path)
    print(f"{len(packed):,} bytes")
    if len(packed) > MAX_BYTES:
        print(f"more than {MAX_BYTES:,}: keep the tokens of fewer steps", file=sys.stderr)
        return 1
    EXAMPLE_FILE.write_bytes(packed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
