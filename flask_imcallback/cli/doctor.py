"""The doctor: it checks the app and its live address, to find out why callbacks are lost."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from flask import Flask

from ..checks import (
    EXEMPTION,
    GATE_REMEDY,
    MAX_CLOCK_DIFFERENCE,
    Finding,
    Level,
    check_database,
    check_hooks,
    check_log,
    check_seals,
    check_settings,
    check_spool,
    explain,
    explain_clock,
    failure,
    guard,
    note,
    ok,
    warning,
)
from ..errors import SendError
from ..providers import Callback, OutgoingCallback, Provider
from ..runtime import Runtime
from ..settings import DEFAULT_MAX_BODY_BYTES
from ..storage import is_delivery_stored
from .sender import Answer, Sender

SLOW_ANSWER_SECONDS = 1.0
MAX_PROBE_AGE = timedelta(minutes=5)
"""The age of the oldest delivery that is searched for the probe. Clocks may differ by this much."""


def examine(
    app: Flask, runtime: Runtime, url: str | None = None, idle_seconds: float = 60
) -> Iterator[Finding]:
    """Check an app, and with `url` also its live address. Needs an app context.

    Every check runs, even if another check fails. Without `url`, nothing is stored. No file is left
    behind: if root runs this command, its files could lock the app out.
    """
    had_folder = os.path.isdir(app.instance_path)
    try:
        yield from _examine(app, runtime, url, idle_seconds)
    finally:
        runtime.process.get().close_connections()
        if not had_folder:  # Flask-SQLAlchemy has created it
            with suppress(OSError):
                os.rmdir(app.instance_path)


def _examine(
    app: Flask, runtime: Runtime, url: str | None, idle_seconds: float
) -> Iterator[Finding]:
    yield from guard("the settings", lambda: check_settings(app, runtime))
    yield from guard("the log", check_log)
    yield from guard("the database", lambda: check_database(app, runtime))
    yield from guard("the seals", lambda: check_seals(runtime))
    yield from guard("the spool", lambda: check_spool(runtime))
    yield from guard("the functions before each request", lambda: check_hooks(app, runtime))
    if url is None:
        yield note("The live address was not checked", "Pass it with --url.")
        return
    yield from guard("the running app", lambda: _ask_running_app(runtime, url))
    providers = [provider for provider in runtime.providers.values() if provider.is_enabled]
    for provider in providers:
        yield from guard(
            f"the address of {provider.name}",
            lambda provider=provider: _check_address(runtime, provider, url),  # type: ignore[misc]
        )
    with_probe = [provider for provider in providers if _make_probe(provider, "")]
    if with_probe:
        yield from guard(
            "idle connections", lambda: _check_idle_connection(with_probe[0], url, idle_seconds)
        )


def _ask_running_app(runtime: Runtime, url: str) -> Iterator[Finding]:
    """Yield the findings of the running app. Its health check shows them to readers."""
    tokens = runtime.settings.history_tokens
    if not tokens:
        yield note(
            "The running app was not asked about itself",
            "It answers readers with a token of IMCALLBACK_HISTORY_TOKENS only.",
        )
        return
    try:
        sender = Sender(url)
        answer = sender.get("/health", {"Authorization": f"Bearer {tokens[0]}"})
        sender.close()
    except SendError:
        return  # `_check_address` reports it.
    health = _read_object(answer.body)
    if "findings" not in health:
        yield warning(
            f"The health check answers {answer.status} without the state of the running app",
            "The running app has other tokens in IMCALLBACK_HISTORY_TOKENS, or something in front "
            "of it answers.",
            "Compare the settings of the running app and of this command.",
        )
        return
    if health["problem"]:
        yield failure(
            f"The running app: {health['problem']}",
            "Its health check says so.",
            "Run flask imcallback doctor on its machine, with its settings and as its user.",
        )
    database = runtime.describe_database()
    if health["database"] != database:
        yield note(
            f"The running app names its database {health['database']}",
            f"This command names it {database}. Both may be the same database.",
        )
    for finding in health["findings"]:
        yield Finding(
            Level(finding["level"]),
            f"The running app: {finding['title']}",
            finding["why"],
            finding["remedy"],
        )


def _make_probe(provider: Provider, mark: str) -> list[OutgoingCallback]:
    """Return an authentic callback that removes nobody. Its packet holds the mark.

    The probe is handled like a real callback, but the history does not contain it.
    """
    return provider.sample(provider.probe_command, mark, [mark])


def _check_address(runtime: Runtime, provider: Provider, url: str) -> Iterator[Finding]:
    """Send a probe to the live address, and look for it in the database."""
    mark = secrets.token_hex(8)
    probe = _make_probe(provider, mark)
    if not probe:
        yield warning(
            f"{provider.name}: no probe can be sent",
            "Nobody knows whether its callbacks arrive.",
            "Write the method sample of the provider.",
        )
        return
    started = datetime.now(UTC)
    answer = _send_probe(provider, url, probe[0])
    if isinstance(answer, Finding):
        yield answer
        return
    if problem := _check_answer(runtime, provider, answer, url, probe[0]):
        yield problem
        return
    yield ok(f"{provider.name}: the probe gets the answer that the IM server expects")
    yield from _check_speed(provider, answer)
    yield from _check_stored(runtime, provider, mark, started - MAX_PROBE_AGE)
    yield from _check_server_clock(runtime, provider, answer)


def _send_probe(provider: Provider, url: str, probe: OutgoingCallback) -> Answer | Finding:
    """Return the answer to a probe, or the finding that there is no answer."""
    try:
        connection = Sender(url)
        answer = connection.send(probe)
        connection.close()
    except SendError as error:
        return failure(
            f"{provider.name}: {error}",
            "The IM server cannot reach this address either.",
            "Check the URL, its DNS name, the port, the firewall, and whether the certificate is "
            "trusted.",
        )
    return answer


def _check_speed(provider: Provider, answer: Answer) -> Iterator[Finding]:
    if answer.seconds > SLOW_ANSWER_SECONDS:
        yield warning(
            f"{provider.name}: the answer took {answer.seconds:.1f} seconds",
            provider.reactions.after_slow_answer,
            "Find the slow part: the proxy, the database, or too few threads.",
        )


def _check_server_clock(runtime: Runtime, provider: Provider, answer: Answer) -> Iterator[Finding]:
    """Compare the clock of this machine with the Date header of the answer."""
    if date := answer.headers.get("date"):
        difference = abs(parsedate_to_datetime(date) - datetime.now(UTC))
        sign_window = timedelta(seconds=runtime.settings.sign_window)
        if difference > max(MAX_CLOCK_DIFFERENCE, sign_window / 2):
            yield explain_clock("the server", difference, provider.name)


@dataclass(frozen=True)
class Refusal:
    """The explanation of an answer: the reason and the remedy."""

    why: str
    remedy: str


LOST = "No callback reaches the extension, and the IM server sends none again."
OUR_REFUSALS = {
    400: Refusal(
        "The extension got the request without its body, or with another one.",
        "Find the proxy or the function of the app that reads or changes the body.",
    ),
    403: Refusal(
        "The running app has other tokens, secrets or networks, or another clock. Or a proxy drops "
        "the Authorization header or changes the path.",
        "Compare the settings of the running app and of this command. The app logs the reason, and "
        "flask imcallback status counts it.",
    ),
    404: Refusal(
        "The provider is not enabled in the running app.",
        "Compare the settings of the running app and of this command.",
    ),
    405: Refusal(
        "A proxy or a redirect turned the POST request into another one.",
        "Check the proxy, and give the IM server the final URL.",
    ),
    413: Refusal(
        "IMCALLBACK_MAX_BODY is too small even for a probe.",
        f"Set IMCALLBACK_MAX_BODY to {DEFAULT_MAX_BODY_BYTES}, which is the default.",
    ),
    503: Refusal(
        "The running app cannot store callbacks, and no IM server sends them again.",
        "Read the log of the running app. It has the cause and the packets. Repair the cause, and "
        "store the packets with flask imcallback replay.",
    ),
}
"""HTTP status -> its meaning if the extension answered."""
OTHER_REFUSALS = {
    400: Refusal(
        f"Something in front of the extension takes callbacks for forms without a CSRF token. "
        f"{LOST}",
        f"With Flask-WTF, call csrf.exempt({EXEMPTION}). Otherwise look for a proxy or a function "
        "of the app that answers 400.",
    ),
    401: Refusal(
        f"Something in front of the extension requires a login. {LOST}",
        f"If it is a before_request function of the app, {GATE_REMEDY} "
        "If it is the proxy, let the URLs of the callbacks pass.",
    ),
    403: Refusal(
        f"Something in front of the extension refuses the request. {LOST}",
        "Look for a firewall of the proxy, and for a before_request function of the app. In the "
        f"function, {GATE_REMEDY}",
    ),
    404: Refusal(
        "The path does not lead to the extension.",
        "Check the prefix of the proxy and IMCALLBACK_URL_PREFIX.",
    ),
    405: Refusal(
        "The URL belongs to something else.",
        "Check the URL, the prefix of the proxy and IMCALLBACK_URL_PREFIX.",
    ),
    413: Refusal(
        "The limit of the proxy or of the app is too small even for a probe.",
        "Allow bodies of 8 MiB: client_max_body_size in nginx, MAX_CONTENT_LENGTH in Flask.",
    ),
    429: Refusal(
        f"Something in front of the extension limits how many requests may come. {LOST}",
        f"With Flask-Limiter, call limiter.exempt({EXEMPTION}). In a proxy, take the URLs of the "
        "callbacks out of the limit, such as limit_req in nginx.",
    ),
    500: Refusal(
        f"The app fails before the extension gets the request. {LOST}",
        "Read the log of the running app. It has the traceback.",
    ),
    502: Refusal(
        f"The proxy does not reach the app. {LOST}",
        "Start the app, and check the address to which the proxy forwards.",
    ),
    503: Refusal(
        f"The proxy or the platform says that the app is unavailable. {LOST}",
        "Start the app, and check the address to which the proxy forwards.",
    ),
    504: Refusal(
        f"The proxy waited too long for the app. {LOST}",
        "Read the log of the running app, and check the address to which the proxy forwards.",
    ),
}
"""HTTP status -> its meaning if something else answered."""
UNKNOWN_REFUSAL = Refusal(
    "The IM server counts this as failed.",
    "Find out whether the proxy or the app answers, and read its log.",
)


def _check_answer(
    runtime: Runtime, provider: Provider, answer: Answer, url: str, probe: OutgoingCallback
) -> Finding | None:
    """Return the problem of the answer to a probe, or None."""
    name = provider.name
    if 300 <= answer.status < 400:
        location = answer.headers.get("location", "")
        is_same_page = _segments(location) == _segments(url) + _segments(probe.path)
        return _explain_redirect(provider, _show_location(runtime, location), is_same_page)
    if answer.status != 200:
        is_ours = _has_members(
            answer.body, _constant_members(provider.refuse(answer.status, "").body)
        )
        refusals = OUR_REFUSALS if is_ours else OTHER_REFUSALS
        refusal = refusals.get(answer.status, UNKNOWN_REFUSAL)
        return failure(
            f"{name}: the probe is answered {answer.status}", refusal.why, refusal.remedy
        )
    expected = provider.accept(Callback(command=provider.probe_command, removals=None, packet={}))
    if not _has_members(answer.body, expected.body):
        return failure(
            f"{name}: the answer is not the one that the IM server expects",
            provider.reactions.after_wrong_answer,
            "Find out whether something else answers at this URL, or a proxy changes the answer.",
        )
    return None


def _explain_redirect(provider: Provider, location: str, is_same_page: bool) -> Finding:
    """Return the finding for a redirect, either to the same page or to a login page."""
    if is_same_page:
        return failure(
            f"{provider.name}: the URL redirects to {location}",
            provider.reactions.after_redirect,
            "Give the IM server the URL at the end of the redirect. Often it begins with https://. "
            "Behind a proxy with HTTPS, use ProxyFix of Werkzeug with x_proto=1.",
        )
    return failure(
        f"{provider.name}: the probe is sent to another page: {location or 'the page has no URL'}",
        f"Something in front of the extension probably requires a login. {LOST}",
        f"If it is a before_request function of the app, {GATE_REMEDY} If it is the proxy, let the "
        "URLs of the callbacks pass.",
    )


def _segments(url: str) -> list[str]:
    """Return the path of a URL without empty segments."""
    return [segment for segment in urlsplit(url).path.split("/") if segment]


def _show_location(runtime: Runtime, location: str) -> str:
    """Return a URL without its secrets. Login pages get the old URL as a parameter."""
    text = urlsplit(location)._replace(query="", fragment="").geturl()
    for secret in runtime.settings.secrets:
        text = text.replace(secret, "<secret>")
    return text


def _constant_members(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the members of our answer that do not depend on the problem."""
    return {name: value for name, value in body.items() if value != ""}


def _has_members(body: bytes, expected: Mapping[str, Any]) -> bool:
    """Return whether the body is a JSON object with these members, of the same types."""
    members = _read_object(body)
    return bool(members) and all(
        type(members.get(name)) is type(value) and members[name] == value
        for name, value in expected.items()
    )


def _read_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object in a body, or an empty one."""
    try:
        members: Any = json.loads(body)
    except ValueError:
        return {}
    return members if isinstance(members, dict) else {}


def _check_stored(
    runtime: Runtime, provider: Provider, mark: str, since: datetime
) -> Iterator[Finding]:
    """Look for the probe in the database."""
    try:
        with runtime.engine().connect() as connection:
            is_stored = is_delivery_stored(connection, provider.probe_command, since, mark.encode())
    except Exception as error:
        problem = explain(error)
        yield warning(
            f"{provider.name}: nobody knows whether the probe is stored",
            f"This command cannot read the database. {problem.title}.",
            problem.remedy,
        )
        return
    if is_stored:
        yield ok(f"{provider.name}: the probe is stored")
    elif runtime.drain and runtime.drain.spool.waiting().count:
        yield warning(
            f"{provider.name}: the probe is not in the database, but callbacks wait in the spool",
            "The probe probably waits with them.",
            "Find out why the database does not store callbacks. The log of the app says it.",
        )
    else:
        yield failure(
            f"{provider.name}: the probe was answered, but is not in this app's database",
            "Another app answers at this URL, or this command uses another database.",
            "Compare SQLALCHEMY_DATABASE_URI and IMCALLBACK_BIND_KEY of both.",
        )


def _check_idle_connection(provider: Provider, url: str, seconds: float) -> Iterator[Finding]:
    """Check that a connection stays open between two callbacks."""
    try:
        connection = Sender(url)
        connection.send(_make_probe(provider, secrets.token_hex(8))[0])
    except SendError:
        return  # `_check_address` reports it.
    if not connection.is_open:
        yield ok("The server closes each connection with its answer, so no idle connection is lost")
        return
    time.sleep(seconds)
    try:
        connection.send(_make_probe(provider, secrets.token_hex(8))[0])
    except SendError as error:
        yield failure(
            f"The server closes a connection that is idle for {seconds:g} seconds "
            f"({type(error.__cause__).__name__})",
            "The IM server may send its next callback on this connection and lose it. This app "
            "never sees the lost callback.",
            "Keep idle connections open longer (--keep-alive 75 in gunicorn, "
            "keepalive_timeout in nginx), or close each one with its answer.",
        )
    else:
        yield ok(f"The server keeps a connection that is idle for {seconds:g} seconds")
    finally:
        connection.close()
