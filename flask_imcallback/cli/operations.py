"""Commands for operators: `status`, `spool`, `doctor` and `send`."""

from __future__ import annotations

import click

from ..history import CALLBACK_COUNT
from ..providers import Provider
from ..runtime import Runtime, get_runtime
from .doctor import examine
from .output import echo_table, make_command
from .sender import Sender


def _status() -> None:
    rows = [CALLBACK_COUNT.dump(count) for count in get_runtime().counters.counts()]
    echo_table(rows, tuple(CALLBACK_COUNT.fields))


status = make_command(
    "status",
    "Show how many callbacks were accepted, by command, and refused, by reason, and the last time "
    "of each.",
    _status,
)


def _spool(drain: bool) -> None:
    """Print how many callbacks wait in the spool. With `drain`, store them first."""
    runtime = get_runtime()
    if runtime.drain is None:
        raise click.ClickException("there is no spool: IMCALLBACK_SPOOL is None")
    waiting = runtime.drain.spool.waiting()
    if drain:
        problem = runtime.drain.finish()
        count_before, waiting = waiting.count, runtime.drain.spool.waiting()
        click.echo(f"{count_before - waiting.count} drained", err=True)
    oldest = f", the oldest received at {waiting.oldest}" if waiting.oldest else ""
    click.echo(f"{waiting.count} waiting in {runtime.drain.spool.path}{oldest}")
    if drain and waiting.count:
        raise click.ClickException(f"the waiting callbacks could not be stored: {problem}")


spool = make_command(
    "spool",
    "Show how many callbacks wait in the spool. The app stores them without this command.",
    _spool,
    click.Option(["--drain"], is_flag=True, help="Store the waiting callbacks now."),
)


LEVELS = {"ok": "ok     ", "warning": "WARNING", "failure": "FAILURE"}


def _doctor(url: str | None, idle: float) -> None:
    """Print all findings, each with its reason and its remedy."""
    failure_count = 0
    for finding in examine(get_runtime(), url, idle):
        failure_count += finding.level == "failure"
        click.echo(f"{LEVELS[finding.level]} {finding.title}")
        for line in (finding.why, finding.remedy):
            if line:
                click.echo(f"        {line}")
    if failure_count:
        raise click.ClickException(f"{failure_count} problems that can lose callbacks were found")


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


def _choose_provider(runtime: Runtime, command: str, name: str | None) -> Provider:
    """Return the provider with this name, or the one that knows the command."""
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
        raise click.ClickException(
            f"choose the provider of the command {command!r} with --provider. "
            f"The enabled providers are: {names}"
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
    """Send the samples of the provider. Print the answers, and how long each one took."""
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
        click.echo(f"{answer.status} after {answer.seconds * 1000:.1f} ms", err=True)
    if any(answer.status != 200 for answer in answers):
        raise click.ClickException("not every callback was accepted")


send = make_command(
    "send",
    "Send a callback as the IM server sends it, with this app's secrets. The removals are stored.",
    _send,
    click.Option(["--url"], default="http://127.0.0.1:8000/imcallback", show_default=True),
    click.Argument(["command"]),
    click.Option(
        ["--owner"], default="alice", show_default=True, help="The account whose list changes."
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
