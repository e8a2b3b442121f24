"""Commands for operators: `status`, `spool`, `doctor` and `send`."""

from __future__ import annotations

from collections.abc import Iterable

import click
from flask import current_app

from ..checks import judge_waiting
from ..history import CALLBACK_COUNT
from ..providers import Provider
from ..runtime import Runtime, get_runtime
from ..storage import Spool
from ..storage import protect as protect_tables
from .doctor import examine
from .output import echo_findings, echo_table, escape, make_command
from .sender import Sender


def _status() -> None:
    """Print the counts of callbacks to stdout, and the state of the spool to stderr."""
    runtime = get_runtime()
    rows = [CALLBACK_COUNT.dump(count) for count in runtime.counters.counts()]
    echo_table(rows, tuple(CALLBACK_COUNT.fields))
    if runtime.drain is not None:
        echo_findings(judge_waiting(runtime.drain.spool.waiting()), err=True)


status = make_command(
    "status",
    "Show how many callbacks were accepted, by command, and refused, by reason, and the last time "
    "of each. Messages say what waits in the spool.",
    _status,
)


def _spool(drain: bool, adopt: str | None) -> None:
    """Adopt and drain callbacks if the options say so, then print the content of the spool."""
    runtime = get_runtime()
    if runtime.drain is None:
        raise click.ClickException("there is no spool: IMCALLBACK_SPOOL is None")
    spool, problem = runtime.drain.spool, ""
    if adopt is not None:
        _adopt(spool, adopt)
    if drain:
        before = spool.waiting()
        problem = runtime.drain.drain_all()
        after = spool.waiting()
        drained = before.count + before.set_aside - after.count - after.set_aside
        click.echo(f"{drained} drained", err=True)
    _echo_content(spool)
    if drain and problem:
        raise click.ClickException(f"the callbacks in the spool could not be stored: {problem}")


def _adopt(spool: Spool, mark: str) -> None:
    """Take over the callbacks of another database."""
    marks = spool.waiting().foreign
    if mark not in marks:
        known = "\n".join(f"  {known}" for known in marks) or "  none"
        raise click.ClickException(
            f"the spool holds no callbacks of the database {mark!r}. It holds callbacks of these "
            f"other databases:\n{known}"
        )
    click.echo(f"{spool.adopt(mark)} adopted", err=True)


def _echo_content(spool: Spool) -> None:
    """Print the counts of the spool, and the errors of the callbacks that are set aside."""
    waiting = spool.waiting()
    oldest = f", the oldest received at {waiting.oldest}" if waiting.oldest else ""
    click.echo(f"{waiting.count} waiting in {spool.path}{oldest}")
    if waiting.set_aside:
        click.echo(f"{waiting.set_aside} set aside")
        for entry in spool.list_set_aside():
            click.echo(
                f"  received at {entry.received_at}, failed {entry.failures} times, last at "
                f"{entry.failed_at:%Y-%m-%d %H:%M:%S}: {escape(entry.problem)}"
            )
    for mark, count in waiting.foreign.items():
        click.echo(f"{count} for another database: {escape(mark)}")


spool = make_command(
    "spool",
    "Show what the spool holds: callbacks that wait for the database, callbacks that the database "
    "refused, and callbacks of other databases. The app stores waiting callbacks without this "
    "command.",
    _spool,
    click.Option(["--drain"], is_flag=True, help="Store the callbacks in the spool now."),
    click.Option(
        ["--adopt"],
        metavar="MARK",
        help="Take over the callbacks of another database, after the database of this app moved. "
        "MARK is shown by this command.",
    ),
)


def _doctor(url: str | None, idle: float) -> None:
    """Print all findings, each with its reason and its remedy."""
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    failure_count = echo_findings(examine(app, get_runtime(), url, idle))
    if failure_count:
        problems = "1 problem" if failure_count == 1 else f"{failure_count} problems"
        raise click.ClickException(f"doctor found {problems} that can lose callbacks")


doctor = make_command(
    "doctor",
    "Find out why callbacks do not arrive or get lost. The exit status is 1 after a FAILURE.",
    _doctor,
    click.Option(["--url"], help="The live URL, such as https://your.host/imcallback."),
    click.Option(
        ["--idle"],
        type=float,
        default=60,
        show_default=True,
        help="The seconds that a connection must stay open between two callbacks.",
    ),
)


def _protect() -> None:
    protect_tables(get_runtime().writing_engine())
    click.echo("The tables are append-only", err=True)


protect = make_command(
    "protect",
    "Create the triggers that make the tables append-only again, and shut the door in them. The "
    "migration has done this already, unless doctor reports that triggers are missing.",
    _protect,
)


def _choose_provider(runtime: Runtime, command: str, name: str | None) -> Provider:
    """Return the provider with this name, or the provider that records the command."""
    enabled = {p.name: p for p in runtime.providers.values() if p.is_enabled}
    names = ", ".join(enabled) or "none"
    if name is not None:
        if name not in enabled:
            raise click.ClickException(
                f"the provider {name!r} is not enabled. The enabled providers are: {names}"
            )
        return enabled[name]
    providers = [p for p in enabled.values() if command in p.commands] or list(enabled.values())
    if len(providers) != 1:
        recorded = ", ".join(known for p in enabled.values() for known in p.commands)
        raise click.ClickException(
            f"choose the provider of the command {command!r} with --provider. "
            f"The enabled providers are: {names}. They record: {recorded or 'no command'}"
        )
    return providers[0]


def _send(
    command: str,
    *,
    url: str,
    owner: str,
    targets: tuple[str, ...],
    app_id: str,
    provider: str | None,
) -> None:
    """Send callbacks of the provider. Print each answer and its time."""
    chosen = _choose_provider(get_runtime(), command, provider)
    callbacks = chosen.sample(command, owner, targets, app_id=app_id)
    if not callbacks:
        raise click.ClickException(
            f"the provider {chosen.name!r} cannot make callbacks: write its method sample"
        )
    connection = Sender(url)
    answers = [connection.send(callback) for callback in callbacks]
    connection.close()
    for answer in answers:
        click.echo(answer.body.decode(errors="replace"))
        result = "accepted" if answer.status == 200 else "refused"
        click.echo(f"{result}: {answer.status} after {answer.seconds * 1000:.1f} ms", err=True)
    refused = sum(answer.status != 200 for answer in answers)
    if refused:
        raise click.ClickException(
            f"the app refused {refused} of {len(answers)} callbacks: its log has the reason, and "
            "flask imcallback status counts it"
        )


def make_send(providers: Iterable[Provider]) -> click.Command:
    """Return the command `send`. Its help lists the commands that the providers record."""
    send = make_command(
        "send",
        "Send a callback as the IM server sends it, with this app's secrets. The removals are "
        "stored. COMMAND is the name that the IM server gives to the kind of callback.",
        _send,
        click.Option(
            ["--url"],
            default="http://127.0.0.1:8000/imcallback",
            show_default=True,
            help="The URL of the running app.",
        ),
        click.Argument(["command"]),
        click.Option(
            ["--owner"],
            default="alice",
            show_default=True,
            help="The account whose list changes, or the group that loses the target.",
        ),
        click.Option(
            ["--target", "targets"],
            multiple=True,
            default=["bob"],
            show_default=True,
            help="The account that leaves the list. Can be repeated.",
        ),
        click.Option(
            ["--app-id"],
            default="",
            help="The app at the IM server, for a provider with several. Default: the first one.",
        ),
        click.Option(["--provider"], help="The provider of a command that no provider records."),
    )
    send.epilog = "\b\nThe commands that record removals:\n" + "\n".join(
        f"  {provider.name}: {command}" for provider in providers for command in provider.commands
    )
    return send
