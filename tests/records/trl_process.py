"""One of several processes of a TRL run: `accelerate launch … trl_process.py FOLDER`.

Each has a folder and a database of its own, to see which of them writes. TRL's logs lie beside.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from trl_runs import Logs, make_trainer

from grpo_core import attach

torch.set_num_threads(1)
root, rank = Path(sys.argv[1]), PartialState(cpu=True).process_index
folder = root / str(rank)
folder.mkdir()
# Twelve rows a generation: the second of three groups lies in both processes. The sixteen rows of
# an evaluation are more than TRL keeps in its logs.
trainer = make_trainer(
    folder,
    steps=3,
    per_device_train_batch_size=6,
    per_device_eval_batch_size=8,
    eval_strategy="steps",
    eval_steps=3,
)
logs = Logs(trainer, {})
attach(trainer, db=folder / "runs.sqlite")
trainer.train()
logged = json.dumps({"generations": logs.generations, "history": logs.history})
(root / f"logs-{rank}.json").write_text(logged)
PartialState().wait_for_everyone()
# gloo's threads may abort a process that ends while its model still holds their group.
os._exit(0)
