"""Do two store files hold the same runs, to the last bit?

    python -m scripts.compare_stores BEFORE.sqlite AFTER.sqlite

Runs are paired in the order in which they were created. Compared are steps, open metrics, groups,
rollouts and token records; times and peak memory are left out, because no two runs share them.
Prints a line for each run and table. Exit code 1: something differs.
"""

from __future__ import annotations

import argparse
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

GROUPS = "step, g.position, prompt_id, prompt, answer, reward_mean, reward_std, verdict"
ROLLOUTS = "r.position, text, finish_reason, num_tokens, reward, advantage, scores, edited"
TOKENS = "token_ids, sampling_logprobs, logprobs, ref_logprobs, entropy"
OF_GROUP = "FROM groups g JOIN rollouts r ON r.group_id = g.id"
BY_POSITION = "WHERE g.run_id = ? ORDER BY step, g.position"


def tables(conn: sqlite3.Connection) -> Iterator[tuple[str, str]]:
    """(name, query of one run) of everything that is compared."""
    columns = [row[1] for row in conn.execute("PRAGMA table_info(steps)")]
    kept = [
        c for c in columns if not c.endswith("_seconds") and c not in ("run_id", "peak_memory_mib")
    ]
    yield "steps", f"SELECT {', '.join(sorted(kept))} FROM steps WHERE run_id = ? ORDER BY step"
    yield (
        "metrics",
        "SELECT step, name, value FROM metrics WHERE run_id = ? AND name NOT LIKE 'knob/%' "
        "AND name NOT LIKE 'edit/%' ORDER BY step, name",
    )
    yield "groups", f"SELECT {GROUPS} FROM groups g {BY_POSITION}"
    yield "rollouts", f"SELECT step, g.position, {ROLLOUTS} {OF_GROUP} {BY_POSITION}, r.position"
    yield (
        "turns",
        "SELECT step, g.position, r.position, t.position, t.role, t.text, t.first_token, "
        f"t.num_tokens, t.tool, t.arguments, t.error {OF_GROUP} "
        f"JOIN turns t ON t.rollout_id = r.id {BY_POSITION}, r.position, t.position",
    )
    yield (
        "token_records",
        f"SELECT step, g.position, r.position, {TOKENS} {OF_GROUP} "
        f"JOIN token_records t ON t.rollout_id = r.id {BY_POSITION}, r.position",
    )


def runs(conn: sqlite3.Connection) -> list[tuple[str, str]]:
    return conn.execute("SELECT id, name FROM runs ORDER BY created_at, id").fetchall()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    files = parser.parse_args()
    different = 0
    with (
        closing(sqlite3.connect(files.before)) as one,
        closing(sqlite3.connect(files.after)) as two,
    ):
        pairs = list(zip(runs(one), runs(two), strict=True))
        for (id_one, name), (id_two, name_two) in pairs:
            assert name == name_two, f"{name} is paired with {name_two}"
            for table, sql in tables(one):
                rows = one.execute(sql, (id_one,)).fetchall()
                same = rows == two.execute(sql, (id_two,)).fetchall()
                different += not same
                print(f"{name:32} {table:14} {len(rows):6} rows  {'same' if same else 'DIFFERENT'}")
    print(f"{len(pairs)} runs, {different} tables differ")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
