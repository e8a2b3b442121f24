"""Finds out why callbacks do not arrive, or get lost."""

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
from ..providers import Callback, OutgoingCallback, Provider
from ..runtime import Runtime
from ..storage import delivery, id_at, is_at_head
from .sender import Answer, Sender

SLOW_ANSWER_SECONDS = 1.0
MAX_CLOCK_DIFFERENCE = timedelta(seconds=5)
MAX_PROBE_AGE = timedelta(minutes=5)
"""How far back the probe is searched in the database. Clocks may differ by this much."""


@dataclass(frozen=True)
class Finding:
    """A result of the examination: what is wrong, why it matters, and what to do."""

    level: str
    """`ok`, `warning` or `failure`. A failure loses callbacks."""
    title: str
    why: str = ""
    remedy: str = ""


def ok(title: str) -> Finding:
    """Return the finding that something is right."""
    return Finding("ok", title)


def warning(title: str, why: str, remedy: str) -> Finding:
    """Return the finding that something needs attention, but loses no callbacks."""
    return Finding("warning", title, why, remedy)


def failure(title: str, why: str, remedy: str) -> Finding:
    """Return the finding that something loses callbacks."""
    return Finding("failure", title, why, remedy)


def examine(
    runtime: Runtime, url: str | None = None, idle_seconds: float = 60
) -> Iterator[Finding]:
    """Check the settings, database and spool of an app, and with `url` also its live address.

    Needs an app context.
    """
    yield from _check_settings(runtime)
    yield from _check_database(runtime)
    yield from _check_spool(runtime)
    if url is None:
        return
    providers = [provider for provider in runtime.providers.values() if provider.is_enabled]
    for provider in providers:
        yield from _check_address(runtime, provider, url)
    with_probe = [provider for provider in providers if _make_probe(provider, "")]
    if with_probe:
        yield from _check_idle_connection(with_probe[0], url, idle_seconds)


def _check_settings(runtime: Runtime) -> Iterator[Finding]:
    settings = runtime.settings
    providers = runtime.providers.values()
    if not any(provider.is_enabled for provider in providers):
        keys = " or ".join(key for provider in providers for key in provider.settings_keys)
        yield failure(
            "No provider is on",
            "Every callback is answered with 404.",
            f"Set {keys or 'what the providers need'}, and start the app again.",
        )
    if settings.allow_unauthenticated:
        yield warning(
            "IMCALLBACK_ALLOW_UNAUTHENTICATED is on",
            "Anybody can write into the history.",
            "Set a token, a secret path segment or credentials, and remove this setting.",
        )
    if not settings.history_tokens and not runtime.history_decorators:
        yield warning(
            "The history is closed",
            "Nobody can read it over HTTP.",
            "Set IMCALLBACK_HISTORY_TOKENS or pass history_decorators, if somebody should read it.",
        )
    yield ok("The settings are well formed")


def _check_database(runtime: Runtime) -> Iterator[Finding]:
    try:
        engine = runtime.engine()
        if not is_at_head(engine):
            yield failure(
                "The tables are not at the newest migration",
                "Callbacks wait in the spool. Without a spool they are lost.",
                "Run flask db upgrade.",
            )
            return
        before = datetime.now(UTC)
        with engine.connect() as connection:
            database_time = connection.scalar(select(func.current_timestamp()))
        after = datetime.now(UTC)
    except ImCallbackError as error:
        yield failure(
            "The database does not answer",
            f"Callbacks wait in the spool. Without a spool they are lost. The error: {error}",
            "Check SQLALCHEMY_DATABASE_URI, IMCALLBACK_BIND_KEY, and the database itself.",
        )
        return
    yield ok(f"The database answers ({engine.dialect.name}), at the newest migration")
    if isinstance(database_time, datetime) and database_time.tzinfo:
        difference = max(before - database_time, database_time - after, timedelta())
        if difference > MAX_CLOCK_DIFFERENCE:
            yield _clock_failure("The clocks of this host and of the database are", difference)


def _clock_failure(title: str, difference: timedelta) -> Finding:
    return failure(
        f"{title} {difference.total_seconds():.0f} seconds apart",
        "With a wrong clock, signatures are refused and the history has wrong times.",
        "Set both clocks by NTP.",
    )


def _check_spool(runtime: Runtime) -> Iterator[Finding]:
    if runtime.drain is None:
        yield warning(
            "There is no spool",
            "While the database is unavailable, callbacks are answered with 503, and only the log "
            "keeps their packets.",
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
            "While the database is unavailable, only the log keeps the packets. "
            f"The error: {error}",
            "Set IMCALLBACK_SPOOL to a file that the app may write.",
        )
        return
    yield ok(f"The spool {spool.path} can be written")
    if waiting.count:
        yield warning(
            f"{waiting.count} callbacks wait in the spool, the oldest since {waiting.oldest}",
            "The history does not show them yet.",
            "Run flask imcallback spool --drain. It stores them or prints the reason.",
        )


def _make_probe(provider: Provider, mark: str) -> list[OutgoingCallback]:
    """Return an authentic callback that removes nobody. Its packet holds the mark.

    The probe takes the whole way of a real callback, but no history shows it.
    """
    return provider.sample(provider.probe_command, mark, [mark])


def _check_address(runtime: Runtime, provider: Provider, url: str) -> Iterator[Finding]:
    """Send a probe through the live address, and look for it in the database."""
    name = provider.name
    mark = secrets.token_hex(8)
    probe = _make_probe(provider, mark)
    if not probe:
        yield warning(
            f"{name}: no probe can be sent",
            "Nobody knows whether its callbacks arrive.",
            "Write the method sample of the provider.",
        )
        return
    started = datetime.now(UTC)
    try:
        connection = Sender(url)
        answer = connection.send(probe[0])
        connection.close()
    except SendError as error:
        yield failure(
            f"{name}: {error}",
            "The IM server cannot reach this address either.",
            "Check the URL, its DNS name, the port, the firewall, and whether the certificate is "
            "trusted.",
        )
        return
    if problem := _check_answer(provider, answer):
        yield problem
        return
    yield ok(f"{name}: the probe gets the answer that the IM server expects")
    if answer.seconds > SLOW_ANSWER_SECONDS:
        yield warning(
            f"{name}: the answer took {answer.seconds:.1f} seconds",
            provider.reactions.to_slow_answer,
            "Find the slow part: the proxy, the database, or too few threads.",
        )
    if not _is_stored(runtime, provider, mark, started - MAX_PROBE_AGE):
        yield failure(
            f"{name}: the probe was answered, but is not in this app's database",
            "Another app answers at this URL, or this command uses another database.",
            "Compare SQLALCHEMY_DATABASE_URI and IMCALLBACK_BIND_KEY of both.",
        )
        return
    yield ok(f"{name}: the probe is stored")
    if date := answer.headers.get("date"):
        difference = abs(parsedate_to_datetime(date) - datetime.now(UTC))
        sign_window = timedelta(seconds=runtime.settings.sign_window)
        if difference > max(MAX_CLOCK_DIFFERENCE, sign_window / 2):
            yield _clock_failure(
                f"{name}: the clocks of the server and of this host are", difference
            )


REFUSALS: dict[int, tuple[str, str]] = {
    400: (
        "The request was not taken for a callback, but for example for a form without a CSRF "
        "token.",
        'With Flask-WTF, call csrf.exempt(app.blueprints["imcallback_callbacks"]). Otherwise look '
        "for a proxy or middleware in front of the app.",
    ),
    401: (
        "Something in front of the app requires a login, and the IM server has none.",
        "Let the URLs of the callbacks pass. They have their own guards.",
    ),
    403: (
        "The running app has other tokens, secrets or networks, or another clock. Or a proxy drops "
        "the Authorization header or changes the path.",
        "Compare the settings of the running app and of this command. The app logs the reason.",
    ),
    404: (
        "The path does not lead to the extension, or the provider is off in the running app.",
        "Check the prefix of the proxy and IMCALLBACK_URL_PREFIX.",
    ),
    405: (
        "The proxy changed the method, or the URL belongs to something else.",
        "Check the proxy and the URL.",
    ),
    413: (
        "The limit of the proxy or IMCALLBACK_MAX_BODY is too small even for a probe.",
        "Allow bodies of 1 MiB.",
    ),
    503: (
        "The running app cannot store callbacks, and no IM server sends them again.",
        "Read the log of the running app. It has the cause and the packets.",
    ),
}
"""HTTP status -> why it matters and what to do."""
OTHER_REFUSAL = (
    "The IM server counts this as failed.",
    "Read the log of the running app.",
)


def _check_answer(provider: Provider, answer: Answer) -> Finding | None:
    """Return what is wrong with the answer to a probe."""
    name = provider.name
    if 300 <= answer.status < 400:
        return failure(
            f"{name}: the URL redirects to {answer.headers.get('location', 'another one')}",
            provider.reactions.to_redirect,
            "Give the IM server the URL at the end of the redirect. Often it begins with https://.",
        )
    if answer.status != 200:
        return failure(
            f"{name}: the probe is answered {answer.status}",
            *REFUSALS.get(answer.status, OTHER_REFUSAL),
        )
    expected = provider.accept(Callback(command=provider.probe_command, removals=None, packet={}))
    if not _has_members(answer.body, dict(expected.body)):
        return failure(
            f"{name}: the answer is not the one that the IM server expects",
            provider.reactions.to_wrong_answer,
            "Find out whether something else answers at this URL, or a proxy changes the answer.",
        )
    return None


def _has_members(body: bytes, expected: dict[str, Any]) -> bool:
    """Return whether the body is a JSON object with these members, of the same types."""
    try:
        members: Any = json.loads(body)
    except ValueError:
        return False
    return isinstance(members, dict) and all(
        type(members.get(name)) is type(value) and members[name] == value
        for name, value in expected.items()
    )


def _is_stored(runtime: Runtime, provider: Provider, mark: str, since: datetime) -> bool:
    column = delivery.c
    probes = select(column.body).where(
        column.id >= id_at(since),
        column.provider == provider.name,
        column.command == provider.probe_command,
    )
    with runtime.engine().connect() as connection:
        return any(mark.encode() in body for body in connection.scalars(probes))


def _check_idle_connection(provider: Provider, url: str, seconds: float) -> Iterator[Finding]:
    """Check that a connection stays open between two callbacks."""
    try:
        connection = Sender(url)
        connection.send(_make_probe(provider, secrets.token_hex(8))[0])
    except SendError:
        return  # `_check_address` reports it.
    if not connection.is_open:
        yield ok("The server closes each connection with its answer, so none is lost idle")
        return
    time.sleep(seconds)
    try:
        connection.send(_make_probe(provider, secrets.token_hex(8))[0])
    except SendError as error:
        yield failure(
            f"The server closes a connection that is idle for {seconds:g} seconds ({error})",
            "The IM server may send its next callback on this connection and lose it. This app "
            "never sees the lost callback.",
            "Keep idle connections open longer (keepalive = 75 in gunicorn.conf.py, "
            "keepalive_timeout in nginx), or close each one with its answer.",
        )
    else:
        yield ok(f"The server keeps a connection that is idle for {seconds:g} seconds")
    finally:
        connection.close()
