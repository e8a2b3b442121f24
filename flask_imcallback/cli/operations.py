"""Commands for operators."""

from __future__ import annotations

import secrets

import click

from ..history import CALLBACK_COUNT
from ..providers import openim, tencent
from ..runtime import get_runtime
from . import sender
from .doctor import examine
from .output import echo_table, make_command


def _status() -> None:
    rows = [CALLBACK_COUNT.dump(count) for count in get_runtime().counters.counts()]
    echo_table(rows, tuple(CALLBACK_COUNT.fields))


status = make_command(
    "status",
    "How many callbacks were accepted, by command, and refused, by reason; and the last of each.",
    _status,
)


def _spool(drain: bool) -> None:
    """What waits, as a line on stdout; with `drain`, what was drained on stderr."""
    runtime = get_runtime()
    if runtime.drain is None:
        raise click.ClickException("IMCALLBACK_SPOOL is None: there is no spool")
    before = runtime.drain.spool.waiting()
    if drain:
        problem = runtime.drain.finish()
        after = runtime.drain.spool.waiting()
        click.echo(f"{before.count - after.count} drained", err=True)
        before = after
    oldest = f", the oldest received at {before.oldest}" if before.oldest else ""
    click.echo(f"{before.count} waiting in {runtime.drain.spool.path}{oldest}")
    if drain and before.count:
        raise click.ClickException(f"the database does not take them: {problem}")


spool = make_command(
    "spool",
    "Show how many callbacks wait for the database. The app drains them by itself.",
    _spool,
    click.Option(["--drain"], is_flag=True, help="Store them now."),
)


def _doctor(url: str | None, idle: float) -> None:
    failed = 0
    for finding in examine(get_runtime(), url, idle):
        failed += finding.level == "failure"
        mark = {"ok": "ok     ", "warning": "WARNING", "failure": "FAILURE"}[finding.level]
        click.echo(f"{mark} {finding.title}")
        for line in (finding.why, finding.remedy):
            if line:
                click.echo(f"        {line}")
    if failed:
        raise click.ClickException(f"{failed} of the findings lose callbacks")


doctor = make_command(
    "doctor",
    "Find out why callbacks do not arrive, or would be lost. Exit status 1 if anything is wrong.",
    _doctor,
    click.Option(["--url"], help="The live address, such as https://your.host/imcallback."),
    click.Option(
        ["--idle"],
        type=float,
        default=60,
        show_default=True,
        help="Seconds that a connection must survive between two events.",
    ),
)


def _send(url: str, command: str, owner: str, targets: tuple[str, ...], app_id: str | None) -> None:
    settings = get_runtime().settings
    if command in tencent.RELATIONS or "." in command:
        app_id = app_id or next(iter(settings.tencent_apps), "")
        pairs = [{"From_Account": owner, "To_Account": target} for target in targets]
        packet = {"CallbackCommand": command, "PairList": pairs}
        callbacks = [sender.tencent(settings, packet, app_id)]
    else:
        members = openim.MEMBERS.get(command, ("ownerUserID", "targetUserID"))
        callbacks = [
            sender.openim(
                settings,
                {"callbackCommand": command, members[0]: owner, members[1]: target},
                secrets.token_hex(8),
            )
            for target in targets
        ]
    connection = sender.Sender(url)
    answers = [connection.send(callback) for callback in callbacks]
    connection.close()
    for answer in answers:
        click.echo(answer.body.decode(errors="replace"))
        click.echo(f"{answer.status} after {answer.seconds * 1000:.1f} ms", err=True)
    if any(answer.status != 200 for answer in answers):
        raise click.ClickException("not every callback was accepted")


send = make_command(
    "send",
    "Send a callback as the IM server would, with this app's secrets. Its removals are recorded.",
    _send,
    click.Option(["--url"], default="http://127.0.0.1:8000/imcallback", show_default=True),
    click.Argument(["command"]),
    click.Option(["--owner"], default="alice", show_default=True, help="Whose list changed."),
    click.Option(
        ["--target", "targets"],
        multiple=True,
        default=["bob"],
        show_default=True,
        help="Who left it; may be repeated.",
    ),
    click.Option(["--app-id"], help="Tencent's SDKAppID; the first of the settings otherwise."),
)
