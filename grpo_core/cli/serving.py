"""Commands for the server: app opens the page, tell controls its run, doctor checks its store."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from grpo_core.cli.request import assignment
from grpo_core.cli.terminal import (
    AddCommand,
    add_run_argument,
    add_set_option,
    printable,
    program,
)
from grpo_core.errors import StudioError

# Beside the package, both in a checkout and in an installed package.
PAGE = Path(__file__).parents[2] / "app.py"
# Only the server that trains a run can pass these on to it.
REQUESTS = ("pause", "step", "resume", "stop", "checkpoint", "status")
SERVER = "http://127.0.0.1:7860"


def add_commands(command: AddCommand) -> None:
    doctor = command(
        "doctor",
        doctor_command,
        "Check versions, device, the store, its checkpoints and the disk. "
        "Changes nothing without --fix.",
    )
    doctor.add_argument("--fix", action="store_true", help="repair what can be repaired")
    tell = command(
        "tell",
        tell_command,
        "Control a run that a server is training: pause, step, resume, stop, checkpoint; "
        "or print its status.",
    )
    add_run_argument(tell)
    tell.add_argument("what", nargs="?", choices=REQUESTS, help="default: status")
    add_set_option(tell, "change a setting from the next step on; may be repeated")
    tell.add_argument(
        "--wait-when",
        metavar="CONDITIONS",
        help="set breakpoints, e.g. 'kl > 0.2, step = 40'; '' for none",
    )
    tell.add_argument("--server", default=SERVER, help=f"address of the server (default {SERVER})")
    tell.add_argument("--auth", metavar="USER:PASSWORD", help="the server's name and password")
    command("app", app_command, "Start the server of the page; see app --help.", takes_rest=True)


def app_command(arguments: argparse.Namespace) -> int:
    """Become app.py, which gets all further arguments.

    The process is replaced, so that Ctrl-C, signals and the exit code reach the server directly.
    The file is named by its path: `-m app` would run an app.py of the current folder.
    """
    if not PAGE.is_file():
        raise StudioError(f"{PAGE} does not exist. Install the package again.")
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(PAGE), *arguments.rest])


def tell_command(arguments: argparse.Namespace) -> int:
    answer = _request(arguments)
    if arguments.json:
        print(json.dumps(answer))
        return 0
    error = f"  {printable(answer['error'])}" if answer["error"] else ""
    print(
        f"{answer['id']}  {answer['status']}  {printable(answer['name'])}  "
        f"step {answer['steps_done']} of {answer['num_steps']}{error}"
    )
    return 0


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    """Send the requests to the server, one by one; returns the last answer."""
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    run = arguments.run_id
    changes = dict(map(assignment, arguments.set))
    try:
        auth = tuple(arguments.auth.split(":", 1)) if arguments.auth else None
        client = Client(arguments.server, auth=auth, verbose=False)
        answer = client.predict(run=run, api_name=f"/{arguments.what or 'status'}")
        for name, value in changes.items():
            answer = client.predict(setting=name, value=value, run=run, api_name="/change")
        if arguments.wait_when is not None:
            answer = client.predict(conditions=arguments.wait_when, run=run, api_name="/wait_when")
        return answer
    except AppError as error:
        raise StudioError(str(error)) from None
    except Exception as error:  # a network can fail in any way
        raise StudioError(
            f"--server {arguments.server!r} does not answer: {error}. "
            "Start the server with: python app.py"
        ) from None


def doctor_command(arguments: argparse.Namespace) -> int:
    from grpo_core.runs.doctor import examine

    findings: list[dict[str, Any]] = []
    for finding in examine(arguments.db):
        fixed = False
        if finding.wrong and finding.fix is not None and arguments.fix:
            finding.fix()
            fixed = True
        findings.append(
            {
                "what": finding.what,
                "wrong": finding.wrong,
                "hint": finding.hint,
                "can_fix": finding.fix is not None,
                "fixed": fixed,
            }
        )
        if not arguments.json:
            mark = "fixed" if fixed else "WRONG" if finding.wrong else "ok"
            hint = f" {finding.hint}" if finding.wrong else ""
            print(f"{mark:<6} {printable(finding.what)}.{hint}")
    left = [f for f in findings if f["wrong"] and not f["fixed"]]
    if arguments.json:
        print(json.dumps({"findings": findings, "wrong": len(left)}))
    elif not arguments.fix and any(f["can_fix"] for f in left):
        print(f"Nothing was changed. `{program()} doctor --fix` repairs what can be repaired.")
    return 1 if left else 0
