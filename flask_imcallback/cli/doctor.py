"""Finds out why callbacks do not arrive, or would be lost."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

from sqlalchemy import func, select

from ..errors import ImCallbackError, SendError
from ..providers import Callback
from ..runtime import Runtime
from ..storage import delivery, id_at, is_at_head
from . import sender
from .sender import Answer, Outgoing, Sender

PROBES = {"tencent": "flask-imcallback.Probe", "openim": "flaskImcallbackProbeCommand"}
"""Commands that no server sends: a probe is a delivery that removes nobody, so that no history has
it, and yet walks all the way of a real callback."""
SLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Finding:
    """`level` is ok, warning or failure; `remedy` says what to change."""

    level: str
    title: str
    why: str = ""
    remedy: str = ""


def ok(title: str) -> Finding:
    return Finding("ok", title)


def warning(title: str, why: str, remedy: str) -> Finding:
    return Finding("warning", title, why, remedy)


def failure(title: str, why: str, remedy: str) -> Finding:
    return Finding("failure", title, why, remedy)


def examine(
    runtime: Runtime, url: str | None = None, idle_seconds: float = 60
) -> Iterator[Finding]:
    """Look at one app's settings, database and clock, and with `url` at its live address.

    Needs an app context.
    """
    yield from _settings(runtime)
    yield from _database(runtime)
    yield from _spool(runtime)
    if url is None:
        return
    providers = runtime.providers
    on = [name for name in PROBES if name in providers and providers[name].is_enabled]
    for name in on:
        yield from _address(runtime, name, url)
    if on:
        yield from _idle(runtime, on[0], url, idle_seconds)


def _settings(runtime: Runtime) -> Iterator[Finding]:
    settings = runtime.settings
    if not any(provider.is_enabled for provider in runtime.providers.values()):
        yield failure(
            "No provider is on",
            "Every callback is answered with 404.",
            "Set IMCALLBACK_TENCENT_APPS, IMCALLBACK_SECRETS or IMCALLBACK_OPENIM_CREDENTIALS.",
        )
    if settings.allow_unauthenticated:
        yield warning(
            "IMCALLBACK_ALLOW_UNAUTHENTICATED is on",
            "Anybody can write into the history.",
            "Set a token, a secret path segment or credentials, and take it away.",
        )
    if not settings.history_tokens and not runtime.history_decorators:
        yield warning(
            "The history is closed",
            "Nobody can read it over HTTP.",
            "Set IMCALLBACK_HISTORY_TOKENS or pass history_decorators, if somebody should.",
        )
    yield ok("The settings are well formed")


def _database(runtime: Runtime) -> Iterator[Finding]:
    try:
        engine = runtime.engine()
        if not is_at_head(engine):
            yield failure(
                "The tables are not at the newest migration",
                "Callbacks wait in the spool; without one they are lost.",
                "Run flask db upgrade.",
            )
            return
        before = datetime.now(UTC)
        with engine.connect() as connection:
            theirs = connection.scalar(select(func.current_timestamp()))
        after = datetime.now(UTC)
    except ImCallbackError as error:
        yield failure(
            "The database does not answer",
            f"Callbacks wait in the spool; without one they are lost: {error}",
            "Check SQLALCHEMY_DATABASE_URI, IMCALLBACK_BIND_KEY, and the database itself.",
        )
        return
    yield ok(f"The database answers ({engine.dialect.name}), at the newest migration")
    if isinstance(theirs, datetime) and theirs.tzinfo:
        off = max(before - theirs, theirs - after, timedelta())
        if off > timedelta(seconds=5):
            yield failure(
                f"Our clock and the database's are {off.total_seconds():.0f} seconds apart",
                "Signatures are refused by a wrong clock, and the history has wrong times.",
                "Set both by NTP.",
            )


def _spool(runtime: Runtime) -> Iterator[Finding]:
    if runtime.drain is None:
        yield warning(
            "There is no spool",
            "While the database is away, callbacks are answered with 503 and are only in the log.",
            "Set IMCALLBACK_SPOOL to a file on a disk that outlives the process.",
        )
        return
    spool = runtime.drain.spool
    try:
        with spool.writing():
            pass
        waiting = spool.waiting()
    except (ImCallbackError, OSError) as error:
        yield failure(
            f"The spool {spool.path} cannot be written",
            f"While the database is away, callbacks are only in the log: {error}",
            "Set IMCALLBACK_SPOOL to a file that the app may write.",
        )
        return
    yield ok(f"The spool {spool.path} can be written")
    if waiting.count:
        yield warning(
            f"{waiting.count} callbacks wait in it, the oldest since {waiting.oldest}",
            "The history does not show them yet.",
            "See why by flask imcallback spool --drain.",
        )


def _probe(runtime: Runtime, name: str) -> tuple[str, Outgoing]:
    mark = secrets.token_hex(8)
    if name == "tencent":
        app_id = next(iter(runtime.settings.tencent_apps))
        packet = {"CallbackCommand": PROBES[name], "Mark": mark}
        return mark, sender.tencent(runtime.settings, packet, app_id)
    packet = {"callbackCommand": PROBES[name], "mark": mark}
    return mark, sender.openim(runtime.settings, packet, mark)


def _address(runtime: Runtime, name: str, url: str) -> Iterator[Finding]:
    """Send a probe through the live address, and read it back."""
    mark, probe = _probe(runtime, name)
    started = datetime.now(UTC) - timedelta(minutes=5)
    try:
        connection = Sender(url)
        answer = connection.send(probe)
        connection.close()
    except SendError as error:
        yield failure(
            f"{name}: {error}",
            "The IM server cannot reach this address either.",
            "Check the address, its DNS, port, firewall, and that its certificate is trusted.",
        )
        return
    if problem := _answer_problem(runtime, name, answer):
        yield problem
        return
    yield ok(f"{name}: the probe is answered as the server wants it")
    if answer.seconds > SLOW_SECONDS:
        yield warning(
            f"{name}: the answer took {answer.seconds:.1f} seconds",
            "Tencent waits two seconds; OpenIM's queue drops events while it waits.",
            "Look for what is slow: the proxy, the database, too few threads.",
        )
    if not _is_stored(runtime, name, mark, started):
        yield failure(
            f"{name}: the probe was answered, but is not in this app's database",
            "Another app answers at this address, or this command uses another database.",
            "Compare SQLALCHEMY_DATABASE_URI and IMCALLBACK_BIND_KEY of both.",
        )
        return
    yield ok(f"{name}: the probe is stored")
    if date := answer.headers.get("date"):
        off = abs(parsedate_to_datetime(date) - datetime.now(UTC))
        if off > timedelta(seconds=max(5, runtime.settings.sign_window / 2)):
            yield failure(
                f"{name}: the server's clock is {off.total_seconds():.0f} seconds from this one's",
                "Signatures are refused by a wrong clock, and the history has wrong times.",
                "Set both by NTP.",
            )


REFUSALS: dict[int, tuple[str, str]] = {
    400: (
        "It was taken for something else, such as a form without a CSRF token.",
        'With Flask-WTF: csrf.exempt(app.blueprints["imcallback_callbacks"]). Otherwise look for '
        "what stands before the app.",
    ),
    401: (
        "Something before the app asks for a login that the IM server does not have.",
        "Let the callbacks' addresses pass: they have guards of their own.",
    ),
    403: (
        "The running app has other tokens, secrets or networks, or another clock; or a proxy drops "
        "the Authorization header or the path.",
        "Compare the settings of the running app with this command's; its log names the reason.",
    ),
    404: (
        "The path does not lead to the extension, or the provider is off in the running app.",
        "Check the prefix: the proxy's, and IMCALLBACK_URL_PREFIX.",
    ),
    405: (
        "The method was changed on the way, or this is another address.",
        "Check the proxy and the address.",
    ),
    413: (
        "A limit of the proxy or IMCALLBACK_MAX_BODY is too small even for a probe.",
        "Allow bodies of 1 MiB.",
    ),
    503: (
        "The running app cannot store callbacks; no server sends them again.",
        "Its log has the cause and the packets.",
    ),
}


def _answer_problem(runtime: Runtime, name: str, answer: Answer) -> Finding | None:
    if 300 <= answer.status < 400:
        return failure(
            f"{name}: the address redirects to {answer.headers.get('location', 'elsewhere')}",
            "OpenIM repeats a redirected callback as GET or drops it, Tencent counts it as failed.",
            "Give the IM server the address that it is redirected to, with https:// if need be.",
        )
    if answer.status != 200:
        unknown = ("The IM server counts this as failed.", "Look into the log of the running app.")
        return failure(
            f"{name}: the probe is answered {answer.status}", *REFUSALS.get(answer.status, unknown)
        )
    expected = _expected(runtime, name)
    try:
        given: Any = json.loads(answer.body)
    except ValueError:
        given = None
    if not isinstance(given, dict) or any(
        type(given.get(member)) is not type(value) or given[member] != value
        for member, value in expected.items()
    ):
        return failure(
            f"{name}: the answer is not the one that the server wants",
            "Another body counts as failed, and OpenIM can stop its users for it.",
            "Something else answers at this address, or a proxy rewrites the answer.",
        )
    return None


def _expected(runtime: Runtime, name: str) -> dict[str, Any]:
    callback = Callback(command=PROBES[name], removals=None, packet={})
    return dict(runtime.providers[name].accept(callback).body)


def _is_stored(runtime: Runtime, name: str, mark: str, started: datetime) -> bool:
    column = delivery.c
    probes = select(column.body).where(
        column.id >= id_at(started), column.provider == name, column.command == PROBES[name]
    )
    with runtime.engine().connect() as connection:
        return any(mark.encode() in body for body in connection.scalars(probes))


def _idle(
    runtime: Runtime,
    name: str,
    url: str,
    seconds: float,
) -> Iterator[Finding]:
    """Whether a connection survives a gap between two events.

    Measured with OpenIM's client and an event every two seconds: gunicorn's default keep-alive of
    two seconds lost 23 of 160.
    """
    try:
        connection = Sender(url)
        connection.send(_probe(runtime, name)[1])
    except SendError:
        return  # told before
    if not connection.is_open:
        yield ok("Connections are closed with the answer, so that none is lost idle")
        return
    time.sleep(seconds)
    try:
        connection.send(_probe(runtime, name)[1])
    except SendError as error:
        yield failure(
            f"A connection idle for {seconds:g} seconds is closed by the server ({error})",
            "OpenIM sends its next event on it, and loses it: nothing here ever sees it.",
            "Keep idle connections longer (keepalive = 75 in gunicorn.conf.py, keepalive_timeout "
            "in nginx), or close each with its answer.",
        )
    else:
        yield ok(f"A connection idle for {seconds:g} seconds is kept")
    finally:
        connection.close()
