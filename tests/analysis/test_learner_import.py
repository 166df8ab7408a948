"""The page imports the learner in several threads."""

from __future__ import annotations

import subprocess
import sys

# What a server does at its start: one thread loads models, requests use stored numbers meanwhile.
AT_ONCE = """
import threading
from grpo_core.analysis.learner_import import importing_learner
from grpo_core.analysis.walk_picture import moved
def load():
    with importing_learner():
        from grpo_core.preflight.service import PreflightService
found = []
threads = [threading.Thread(target=load)]
threads += [threading.Thread(target=lambda: found.append(moved([1.0]))) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(found)
"""


def test_threads_that_need_the_learner_at_once_all_get_it():
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", AT_ONCE], capture_output=True, text=True)
        assert (done.stdout.strip(), done.stderr) == (str([[0.0]] * 6), "")
