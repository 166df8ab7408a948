"""Commands about what a server does and leaves behind: tell, doctor."""

from __future__ import annotations

import argparse
import json

from grpo_core.cli.request import assignment
from grpo_core.cli.terminal import AddCommand, printable
from grpo_core.errors import StudioError

# A run that another process is training is reached through that process's server alone.
TOLD = ("pause", "step", "resume", "stop", "checkpoint", "status")


def add_commands(command: AddCommand) -> None:
    doctor = command(
        "doctor",
        doctor_command,
        "Look for what is wrong: versions, device, the store, its checkpoints, the disk. Changes nothing without --fix.",
    )
    doctor.add_argument("--fix", action="store_true", help="mend what can be mended")
    tell = command(
        "tell",
        tell_command,
        "Say something to a run that a server is training: pause, step, resume, stop, checkpoint; or ask for its status.",
    )
    tell.add_argument("run_id", metavar="RUN", help="its id, or `last`")
    tell.add_argument("what", nargs="?", choices=TOLD, help="default: status")
    tell.add_argument(
        "--set",
        metavar="section.field=value",
        action="append",
        default=[],
        help="a setting that changes with the next step; may be repeated",
    )
    tell.add_argument(
        "--wait-when",
        metavar="CONDITIONS",
        help="breakpoints, e.g. 'kl > 0.2, step = 40'; '' for none",
    )
    tell.add_argument(
        "--server", default="http://127.0.0.1:7860", help="default http://127.0.0.1:7860"
    )
    tell.add_argument("--auth", metavar="USER:PASSWORD")


def tell_command(arguments: argparse.Namespace) -> int:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    auth = tuple(arguments.auth.split(":", 1)) if arguments.auth else None
    try:
        client = Client(arguments.server, auth=auth, verbose=False)
        named = dict(map(assignment, arguments.set))
        answer = (
            client.predict(run=arguments.run_id, api_name=f"/{arguments.what}")
            if arguments.what
            else client.predict(run=arguments.run_id, api_name="/status")
        )
        for name, value in named.items():
            answer = client.predict(
                setting=name, value=value, run=arguments.run_id, api_name="/change"
            )
        if arguments.wait_when is not None:
            answer = client.predict(
                conditions=arguments.wait_when, run=arguments.run_id, api_name="/wait_when"
            )
    except AppError as error:
        raise StudioError(str(error)) from None
    except Exception as error:  # whatever a network can do
        raise StudioError(
            f"--server {arguments.server!r} cannot be asked: {error}. Start it with: python app.py"
        ) from None
    if arguments.json:
        print(json.dumps(answer))
    else:
        print(
            f"{answer['id']}  {answer['status']}  {printable(answer['name'])}  step {answer['steps_done']} of {answer['num_steps']}"
            + (f"  {printable(answer['error'])}" if answer["error"] else "")
        )
    return 0


def doctor_command(arguments: argparse.Namespace) -> int:
    from grpo_core.runs.doctor import examine

    said, left = [], 0
    for finding in examine(arguments.db):
        fixed = False
        if finding.wrong and finding.fix is not None and arguments.fix:
            finding.fix()
            fixed = True
        left += finding.wrong and not fixed
        said.append(
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
            how = f" {finding.hint}" if finding.wrong else ""
            print(f"{mark:<6} {printable(finding.what)}.{how}")
    if (
        left
        and not arguments.json
        and not arguments.fix
        and any(s["can_fix"] for s in said if s["wrong"])
    ):
        print("Nothing was changed. `python -m grpo_core doctor --fix` mends what can be mended.")
    if arguments.json:
        print(json.dumps({"findings": said, "wrong": left}))
    return 1 if left else 0
