"""Checks of the host's functions that run before each request, also before each callback."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

from flask import Flask, Request, Response, request
from werkzeug.exceptions import HTTPException

from ..runtime import Runtime
from .findings import Finding, failure, note, ok, warning

BLUEPRINT = "imcallback_callbacks"
EXEMPTION = f'app.blueprints["{BLUEPRINT}"]'
GATE_REMEDY = (
    f'Begin the function with: if request.blueprint == "{BLUEPRINT}": return None. The callbacks '
    "have their own guards."
)
PACKET = b'{"CallbackCommand": "flask-imcallback.Probe"}'
SECRET_SEGMENT = "a-secret-path-segment"  # noqa: S105
"""A path segment that stands for a secret in the requests of these checks."""

WATCHERS = ("ddtrace", "elasticapm", "newrelic", "sentry_sdk")
"""Packages that may record the URL of each request."""

Hook = Callable[[], Any]


def check_hooks(app: Flask, runtime: Runtime) -> Iterator[Finding]:
    """Call the host's `before_request` functions with a callback of each enabled provider.

    The view of the callback is not called, so nothing is stored.
    """
    findings: dict[Finding, None] = {}
    for provider in runtime.providers.values():
        if provider.is_enabled:
            path = f"{runtime.settings.url_prefix}/{provider.name}/{SECRET_SEGMENT}"
            findings |= dict.fromkeys(_check_path(app, path))
    yield from findings or [ok("The functions before each request let callbacks pass")]


def _check_path(app: Flask, path: str) -> list[Finding]:
    findings = list(_visit(app, path, "https"))
    if not findings and any(_visit(app, path, "http")):
        findings.append(
            warning(
                "Callbacks over http:// are not let pass, callbacks over https:// are",
                "Behind a proxy, the app may take every request for one over http://.",
                "Give the IM server an https:// URL. Behind a proxy, use ProxyFix of Werkzeug with "
                "x_proto=1, or turn force_https of Flask-Talisman off.",
            )
        )
    with _request_context(app, path, "https"):
        findings += _check_watchers(app)
    return findings


def _request_context(app: Flask, path: str, scheme: str) -> Any:
    return app.test_request_context(
        path,
        base_url=f"{scheme}://localhost",
        method="POST",
        data=PACKET,
        content_type="application/json",
        environ_base={"REMOTE_ADDR": "127.0.0.1"},
    )


def _visit(app: Flask, path: str, scheme: str) -> Iterator[Finding]:
    """Call the functions in their order, and name the first one that answers or fails."""
    with _request_context(app, path, scheme):
        is_body_left = True
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
                if is_body_left and not _is_body_readable(request):
                    is_body_left = False
                    yield _explain_lost_body(hook)
        yield from _check_limits(app)


def _is_body_readable(request: Request) -> bool:
    """Return True if the view will get the body: from the stream, or from Flask's copy of it."""
    copy = getattr(request, "_cached_data", None)
    if copy is not None:
        return bool(copy == PACKET)
    stream = request.environ["wsgi.input"]
    position = stream.tell()
    is_whole: bool = stream.read() == PACKET
    stream.seek(position)
    return is_whole


def _explain_answer(hook: Hook, answer: Response) -> Finding:
    name = _name_of(hook)
    status = f"{answer.status_code}" + (f" to {answer.location}" if answer.location else "")
    title = f"{name} answers callbacks with {status}"
    why = "No callback reaches the extension, and the IM server sends none again."
    module = getattr(hook, "__module__", "") or ""
    if module.startswith("flask_wtf"):
        return failure(title, why, f"Call csrf.exempt({EXEMPTION}).")
    if module.startswith("flask_limiter"):
        return failure(title, why, f"Call limiter.exempt({EXEMPTION}).")
    return failure(title, why, GATE_REMEDY)


def _explain_error(hook: Hook, error: Exception) -> Finding:
    return failure(
        f"{_name_of(hook)} fails before a callback is read",
        f"The IM server gets an error, and sends no callback again. The error: "
        f"{type(error).__name__}: {error}",
        f"Correct the function. Or {GATE_REMEDY[0].lower()}{GATE_REMEDY[1:]}",
    )


def _explain_lost_body(hook: Hook) -> Finding:
    return failure(
        f"{_name_of(hook)} reads the body of callbacks",
        "The extension gets an empty body, and cannot read the callback.",
        "Call request.get_data() in the function instead: it keeps a copy. Do not read "
        f"request.stream. Or {GATE_REMEDY[0].lower()}{GATE_REMEDY[1:]}",
    )


def _check_limits(app: Flask) -> Iterator[Finding]:
    limits = {
        str(limit.limit)
        for limiter in app.extensions.get("limiter", ())
        for limit in limiter.current_limits
    }
    if limits:
        yield failure(
            f"Flask-Limiter allows {', '.join(sorted(limits))} callbacks of an IP address",
            "All callbacks come from few addresses. It answers the rest with 429, and the IM "
            "server sends none again.",
            f"Call limiter.exempt({EXEMPTION}).",
        )


def _check_watchers(app: Flask) -> Iterator[Finding]:
    """Yield what records the URLs of callbacks, which hold secrets. Needs a request context."""
    prefix = re.escape(request.path.rpartition(f"/{SECRET_SEGMENT}")[0].rpartition("/")[0])
    for hook in app.after_request_funcs.get(None, ()):
        if hook.__module__.startswith("prometheus_flask_exporter") and _labels_secrets(hook):
            yield warning(
                "prometheus-flask-exporter writes the paths of callbacks into its metrics",
                "The paths may hold a secret path segment.",
                f'Pass group_by="endpoint" or excluded_paths=["{prefix}/"] to PrometheusMetrics.',
            )
            break
    for tracer in app.before_request_funcs.get(None, ()):
        if tracer.__module__.startswith("opentelemetry.") and _traces_callbacks(tracer):
            yield warning(
                "OpenTelemetry writes the URLs of callbacks into its spans",
                "The URLs may hold a secret path segment, and they hold the Sign of Tencent.",
                f'Pass excluded_urls="{prefix}/" to FlaskInstrumentor().instrument_app(app), or '
                f"set OTEL_PYTHON_FLASK_EXCLUDED_URLS={prefix}/",
            )
            break
    for package in WATCHERS:
        if package in sys.modules:
            yield note(
                f"The package {package} is loaded, and may record the URLs of callbacks",
                "The URLs hold secrets. Exclude the paths of the callbacks there.",
            )


def _labels_secrets(hook: Callable[..., Any]) -> bool:
    variables = inspect.getclosurevars(hook).nonlocals
    group_by, metrics = variables.get("duration_group", ""), variables.get("self")
    excluded = getattr(metrics, "excluded_paths", None) or ()
    if any(pattern.match(request.path) for pattern in excluded):
        return False
    label = group_by(request) if callable(group_by) else getattr(request, group_by, "")
    return SECRET_SEGMENT in str(label)


def _traces_callbacks(hook: Callable[..., Any]) -> bool:
    excluded = inspect.getclosurevars(hook).nonlocals.get("excluded_urls")
    return excluded is None or not excluded.url_disabled(request.url)


def _name_of(hook: Hook) -> str:
    function = getattr(hook, "__func__", hook)
    name = getattr(function, "__qualname__", type(hook).__name__)
    return f"The function {name} of {getattr(function, '__module__', 'the app')}"
