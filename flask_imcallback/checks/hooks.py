"""Checks of the functions, limits and middleware of the host app that callbacks pass."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Response, request
from werkzeug.exceptions import HTTPException

from ..runtime import Runtime
from .exemptions import exempt_views
from .findings import Finding, failure, note, ok, warning

BLUEPRINT = "imcallback_callbacks"
EXEMPTION = f'app.blueprints["{BLUEPRINT}"]'
GATE_REMEDY = (
    f'begin the function with: if request.blueprint == "{BLUEPRINT}": return None. The callbacks '
    "have their own guards."
)
LOST = "No callback reaches the extension, and the IM server sends none again."
NOT_CALLED = "The extension handles such a callback without the functions of the app."
PACKET = b'{"CallbackCommand": "flask-imcallback.Probe"}'

WATCHERS = ("ddtrace", "elasticapm", "newrelic", "sentry_sdk")
"""Packages that see requests before the extension has hidden the secrets in their URLs."""

Hook = Callable[[], Any]


def check_hooks(app: Flask, runtime: Runtime) -> Iterator[Finding]:
    """Call the `before_request` functions of the host app with a callback of each provider.

    The view of the callback is not called, so nothing is stored.
    """
    exempt_views(app)  # the running app does so at its first request
    findings: dict[Finding, None] = {}
    for provider in runtime.providers.values():
        if provider.is_enabled:
            path = f"{runtime.settings.url_prefix}/{provider.name}"
            findings |= dict.fromkeys(_check_path(app, path))
    yield from findings or [ok("The functions before each request let callbacks pass")]
    yield from _check_watchers(app)


def _check_path(app: Flask, path: str) -> list[Finding]:
    findings = list(_visit(app, path, "https"))
    if not findings and any(_visit(app, path, "http")):
        findings.append(
            warning(
                "Only callbacks over https:// reach the extension",
                "A function of the app answers callbacks over http://. Behind a proxy, the app may "
                "take every request for one over http://.",
                "Give the IM server an https:// URL. Behind a proxy, use ProxyFix of Werkzeug with "
                "x_proto=1, or turn force_https of Flask-Talisman off.",
            )
        )
    return findings


def _visit(app: Flask, path: str, scheme: str) -> Iterator[Finding]:
    """Call the functions in their order, and report the first function that answers or fails."""
    with app.test_request_context(
        path,
        base_url=f"{scheme}://localhost",
        method="POST",
        data=PACKET,
        content_type="application/json",
        environ_base={"REMOTE_ADDR": "127.0.0.1"},
    ):
        for name in (None, *reversed(request.blueprints)):
            for hook in app.before_request_funcs.get(name, ()):
                try:
                    answer = app.ensure_sync(hook)()
                except HTTPException as error:
                    answer = error.get_response(request.environ)
                except Exception as error:
                    yield _explain_error(hook, error)
                    return
                if answer is not None:
                    yield _explain_answer(hook, app.make_response(answer))
                    return
        yield from _check_limits(app)


def _explain_answer(hook: Hook, answer: Response) -> Finding:
    status = f"{answer.status_code}" + (f" to {answer.location}" if answer.location else "")
    title = f"{_name_of(hook)} answers callbacks with {status}"
    if answer.status_code // 100 in (2, 5):
        return warning(title, NOT_CALLED, GATE_REMEDY[0].upper() + GATE_REMEDY[1:])
    module = getattr(hook, "__module__", None) or ""
    if module.startswith("flask_wtf"):
        return failure(title, LOST, f"Call csrf.exempt({EXEMPTION}).")
    if module.startswith("flask_limiter"):
        return failure(title, LOST, f"Call limiter.exempt({EXEMPTION}).")
    return failure(title, LOST, GATE_REMEDY[0].upper() + GATE_REMEDY[1:])


def _explain_error(hook: Hook, error: Exception) -> Finding:
    return warning(
        f"{_name_of(hook)} fails before a callback is read",
        f"{NOT_CALLED} The error: {type(error).__name__}: {error}",
        f"Correct the function, or {GATE_REMEDY}",
    )


def _check_limits(app: Flask) -> Iterator[Finding]:
    limits = {
        str(limit.limit)
        for limiter in app.extensions.get("limiter", ())
        for limit in limiter.current_limits
    }
    if limits:
        yield failure(
            f"Flask-Limiter allows {', '.join(sorted(limits))} callbacks",
            "It answers the rest with 429, and the IM server sends none again. All callbacks come "
            "from few addresses.",
            f"Call limiter.exempt({EXEMPTION}).",
        )


def _check_watchers(app: Flask) -> Iterator[Finding]:
    """Yield the packages that see the URLs of callbacks with their secrets.

    The middleware of this extension hides the secrets from the app. Only a middleware around it
    sees them.
    """
    if type(app.wsgi_app).__module__.startswith("opentelemetry."):
        yield warning(
            "OpenTelemetry writes the URLs of callbacks into its spans",
            "The URLs may hold a secret path segment, and they hold the Sign of Tencent.",
            "Wrap app.wsgi_app before ImCallback(app), or use FlaskInstrumentor instead.",
        )
    for package in WATCHERS:
        if package in sys.modules:
            yield note(
                f"The package {package} is loaded, and may record the URLs of callbacks",
                "The URLs hold secrets. Exclude the paths of the callbacks there.",
            )


def _name_of(hook: Hook) -> str:
    function = getattr(hook, "__func__", hook)
    name = getattr(function, "__qualname__", type(hook).__name__)
    return f"The function {name} of {getattr(function, '__module__', 'the app')}"
