"""Callbacks and pages in apps whose own hooks and extensions stand in the way."""

from __future__ import annotations

import hashlib
import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Flask, Response, abort, g, jsonify, redirect, request
from flask.sessions import SecureCookieSessionInterface
from flask_limiter import Limiter
from flask_talisman import Talisman
from flask_wtf import CSRFProtect
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.wsgi import OpenTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_flask_exporter import PrometheusMetrics
from sqlalchemy import NullPool, create_engine, make_url, text
from werkzeug.test import TestResponse

from flask_imcallback import ImCallback, removals_recorded, upgrade
from flask_imcallback.runtime import get_runtime
from flask_imcallback.web.access import RESPONSE_HEADERS
from flask_imcallback.web.page.files import URL_PATHS
from support import ROOT
from support.apps import MakeApp, close_connections, rows, save_counts, wait_until
from support.faults import locked
from support.pages import TOKEN

SECRET = "a-secret-path-segment"
SIGN_TOKEN = "the token of the console"
CONTINUE = {"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0}
PACKET = {
    "callbackCommand": "callbackAfterRemoveBlackCommand",
    "ownerUserID": "alice",
    "blackUserID": "bob",
}
TENCENT_PACKET = {
    "CallbackCommand": "Sns.CallbackFriendDelete",
    "PairList": [{"From_Account": "alice", "To_Account": "bob"}],
}
OPENIM_URL = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
SETTINGS: dict[str, Any] = {
    "IMCALLBACK_SECRETS": [SECRET],
    "IMCALLBACK_TENCENT_APPS": {"1400000000": [SIGN_TOKEN]},
    "IMCALLBACK_HISTORY_TOKENS": [TOKEN],
}
SetUp = Callable[[Flask], object]


@pytest.fixture
def app(make_app: MakeApp) -> Flask:
    """An app with both providers, before its first request."""
    return make_app(**SETTINGS)


def post_openim(app: Flask, **options: Any) -> TestResponse:
    """Post a callback of OpenIM."""
    return app.test_client().post(OPENIM_URL, **{"json": PACKET, **options})


def tencent_url() -> tuple[str, str]:
    """Return the URL of a signed callback of Tencent, and its signature."""
    now = str(int(time.time()))
    sign = hashlib.sha256((SIGN_TOKEN + now).encode()).hexdigest()
    query = {
        "SdkAppid": "1400000000",
        "CallbackCommand": "Sns.CallbackFriendDelete",
        "RequestTime": now,
        "Sign": sign,
    }
    return f"/imcallback/tencent/{SECRET}?{urlencode(query)}", sign


def post_tencent(app: Flask) -> TestResponse:
    """Post a callback of Tencent."""
    return app.test_client().post(tencent_url()[0], json=TENCENT_PACKET)


def read(app: Flask, path: str) -> TestResponse:
    """Request a URL of the history with the token."""
    return app.test_client().get(path, headers={"Authorization": f"Bearer {TOKEN}"})


def refusals(app: Flask) -> dict[str, int]:
    """Return how many callbacks were refused, by reason."""
    save_counts(app)
    with app.app_context():
        counters = get_runtime().counters
        return {
            count.name: count.count for count in counters.counts() if count.outcome != "accepted"
        }


# Extensions that are exempted


def protect_forms(app: Flask) -> None:
    CSRFProtect(app)


def limit_requests(app: Flask) -> None:
    Limiter(
        lambda: "everybody",
        app=app,
        default_limits=["1 per day"],
        application_limits=["2 per day"],
        storage_uri="memory://",
    )


EXTENSIONS = pytest.mark.parametrize("set_up", [protect_forms, limit_requests])


@EXTENSIONS
@pytest.mark.parametrize("is_first", [True, False], ids=["extension first", "extension last"])
def test_extensions_let_callbacks_pass(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, set_up: SetUp, is_first: bool
) -> None:
    """CSRFProtect and Limiter answer no callback, whatever the order of the extensions is."""
    if is_first:
        init_app = ImCallback.init_app

        def init_after(self: ImCallback, app: Flask, *arguments: Any, **options: Any) -> None:
            set_up(app)
            init_app(self, app, *arguments, **options)

        monkeypatch.setattr(ImCallback, "init_app", init_after)
    app = make_app(**SETTINGS)
    if not is_first:
        set_up(app)
    for _ in range(3):
        assert post_openim(app).get_json() == CONTINUE
        assert post_tencent(app).get_json()["ActionStatus"] == "OK"
        assert app.test_client().get("/imcallback/health").status_code == 200
    assert len(rows(app)[1]) == 6


@EXTENSIONS
def test_extensions_still_protect_the_host(app: Flask, set_up: SetUp) -> None:
    """The exemption is for our views only."""
    set_up(app)
    app.add_url_rule("/form", view_func=lambda: "", endpoint="form", methods=["POST"])
    post_openim(app)
    statuses = [app.test_client().post("/form").status_code for _ in range(2)]
    assert statuses[1] in (400, 429)


def test_an_extension_that_cannot_exempt_is_named(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """An unknown extension in the place of Flask-WTF stops no callback."""
    app.extensions["csrf"] = object()
    assert post_openim(app).status_code == 200
    assert (
        "object may refuse callbacks: exempt app.view_functions['imcallback_callbacks.openim'] "
        "from it" in caplog.text
    )


# Hooks that answer


def login_gate(app: Flask) -> None:
    @app.before_request
    def gate() -> Any:
        return redirect(f"/login?next={request.full_path}")


def own_limiter(app: Flask) -> None:
    @app.before_request
    def limit() -> Any:
        abort(429)


def force_https(app: Flask) -> None:
    Talisman(app)


GATES = [
    pytest.param(login_gate, 302, "302 (to /login)", id="login gate"),
    pytest.param(own_limiter, 429, "429", id="limiter"),
    pytest.param(force_https, 302, "302 (to https://localhost/imcallback/openim)", id="Talisman"),
]


@pytest.mark.parametrize(("set_up", "status", "text"), GATES)
def test_an_answer_of_something_else_is_logged_and_counted(
    app: Flask, caplog: pytest.LogCaptureFixture, set_up: SetUp, status: int, text: str
) -> None:
    """Each lost callback is counted. The log has a line a minute, without the secret."""
    set_up(app)
    for _ in range(3):
        assert post_openim(app).status_code == status
    reason = f"answered by something else in the app: {status}"
    assert refusals(app) == {reason: 3}
    lines = [line for line in caplog.messages if line.startswith("Refused")]
    assert lines == [
        f"Refused a callback of openim: answered by something else in the app: {text}."
    ]
    assert SECRET not in caplog.text
    assert rows(app) == ([], [])


def test_counts_are_saved_if_no_callback_passes(app: Flask) -> None:
    """The view counts callbacks, and behind a gate it is never called."""
    login_gate(app)
    post_openim(app)
    save_counts(app)
    with app.app_context():
        assert [count.count for count in get_runtime().counters.counts()] == [1]


def test_a_browser_at_a_gate_is_not_counted(app: Flask) -> None:
    """IM servers only send POST requests."""
    login_gate(app)
    assert app.test_client().get(OPENIM_URL).status_code == 302
    assert refusals(app) == {}


def test_a_gate_can_let_callbacks_pass(app: Flask) -> None:
    """The two lines of the quickstart keep the gate closed for everything else."""
    page = (ROOT / "docs/quickstart.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n([^`]+require_login[^`]+)```", page)
    app.secret_key = "a key for sessions"
    exec(code, {"app": app})

    assert post_openim(app).status_code == 200
    assert app.test_client().get("/imcallback/health").status_code == 200
    assert read(app, "/imcallback/history").status_code == 302
    assert refusals(app) == {}


# Hooks that fail


class FailingSessions(SecureCookieSessionInterface):
    """Sessions whose server is unavailable."""

    def open_session(self, app: Flask, request: Any) -> Any:
        raise OSError("no answer of the session server")


def failing_hook(app: Flask) -> None:
    @app.before_request
    def fail() -> None:
        request.get_data()
        raise KeyError("on purpose")


def failing_session(app: Flask) -> None:
    app.session_interface = FailingSessions()


def failing_teardown(app: Flask) -> None:
    failing_hook(app)

    @app.teardown_appcontext
    def fail(error: BaseException | None) -> None:
        raise KeyError("on purpose")


def maintenance(app: Flask) -> None:
    @app.before_request
    def close() -> None:
        abort(503)


def friendly_errors(app: Flask) -> None:
    failing_hook(app)

    @app.errorhandler(Exception)
    def answer(error: Exception) -> dict[str, int]:
        app.logger.error("on purpose")
        return {"code": 500}


FAILURES = [friendly_errors, failing_hook, failing_session, failing_teardown, maintenance]


@pytest.mark.parametrize("set_up", FAILURES)
@pytest.mark.parametrize("is_testing", [False, True], ids=["handled", "propagated"])
def test_a_failure_of_the_host_loses_no_callback(
    app: Flask, caplog: pytest.LogCaptureFixture, set_up: SetUp, is_testing: bool
) -> None:
    """The extension handles the callback itself, and the log has the error without the secret."""
    set_up(app)
    app.testing = is_testing
    for _ in range(2):
        response = post_openim(app)
        assert (response.status_code, response.get_json()) == (200, CONTINUE)
    assert post_tencent(app).status_code == 200
    assert (
        app.test_client().post("/imcallback/openim/a-wrong-path-segment/", json=PACKET).status_code
        == 403
    )
    app.teardown_appcontext_funcs.clear()
    deliveries, removals = rows(app)
    assert [json.loads(row["body"]) for row in deliveries] == [PACKET, PACKET, TENCENT_PACKET]
    assert [row["target_id"] for row in removals] == ["bob"] * 3
    assert [*refusals(app).values()] == [1]
    assert ("on purpose" in caplog.text or "no answer" in caplog.text) is (set_up != maintenance)
    assert SECRET not in caplog.text


def test_a_hook_that_needs_the_database_loses_no_callback_in_an_outage(app: Flask) -> None:
    """The callback waits in the spool, as it does without the hook."""
    url = f"sqlite:///{app.instance_path}/imcallback.db"
    engine = create_engine(url, connect_args={"timeout": 0.1}, poolclass=NullPool)

    @app.before_request
    def count_visit() -> None:
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS visit (id INTEGER)"))
            connection.execute(text("INSERT INTO visit VALUES (1)"))

    assert post_openim(app).status_code == 200
    with locked(make_url(url)):
        assert app.test_client().get("/").status_code == 500
        assert post_openim(app).get_json() == CONTINUE
        assert len(rows(app)[1]) == 1
    wait_until(lambda: len(rows(app)[1]) == 2)


class TimeLimitError(BaseException):
    """An error like `gevent.Timeout`, which is no `Exception`."""


def test_a_callback_whose_view_has_begun_is_not_handled_again(tmp_path: Path) -> None:
    """A time limit of the host ends the view, and the host answers 200. The IM server gets 503."""
    app = Flask("host", instance_path=str(tmp_path / "instance"))
    app.config.update(SETTINGS)
    inner = app.wsgi_app

    def limited(environ: Any, start_response: Any) -> Any:
        try:
            return inner(environ, start_response)
        except TimeLimitError:
            start_response("200 OK", [])
            return [b"{}"]

    def end_request(_: Flask, removals: object) -> None:
        raise TimeLimitError

    app.wsgi_app = limited  # type: ignore[method-assign]
    ImCallback(app)
    with app.app_context():
        upgrade()
    with removals_recorded.connected_to(end_request):
        assert post_openim(app).status_code == 503
    assert [row["status"] for row in rows(app)[0]] == ["recorded"]
    close_connections(app)


def test_without_a_guard_of_its_own_the_gate_of_the_host_decides(make_app: MakeApp) -> None:
    """The gate may be all that keeps strangers out, also if it fails. A foreign 200 becomes 503."""
    for answer, status in ((friendly_errors, 503), (maintenance, 503), (failing_hook, 500)):
        app = make_app(IMCALLBACK_ALLOW_UNAUTHENTICATED=True)
        answer(app)
        assert app.test_client().post("/imcallback/openim", json=PACKET).status_code == status
        assert rows(app) == ([], [])


def test_a_browser_gets_the_error_of_the_host(app: Flask) -> None:
    """IM servers only send POST requests, so nothing is lost."""
    failing_hook(app)
    assert app.test_client().get(OPENIM_URL).status_code == 500
    app.testing = True
    with pytest.raises(KeyError):
        app.test_client().get(OPENIM_URL)


# Hooks that read the body


def read_stream() -> None:
    assert request.stream.read()


def read_data() -> None:
    assert request.get_data(cache=False)


def read_cached_data() -> None:
    assert request.get_data()


def read_start() -> None:
    assert request.stream.read(5)


def read_lines() -> None:
    assert request.environ["wsgi.input"].readline(7)
    assert list(request.environ["wsgi.input"])


def read_text() -> None:
    with io.TextIOWrapper(request.environ["wsgi.input"]) as text:
        assert text.read()


def read_buffered() -> None:
    assert io.BufferedReader(request.environ["wsgi.input"]).readline()


def read_into_memory() -> None:
    assert request.environ["wsgi.input"].readinto(bytearray(10)) == 10
    assert request.environ["wsgi.input"].readlines(5)


def read_form() -> None:
    assert request.form


CHUNKED: dict[str, Any] = {
    "headers": {"Transfer-Encoding": "chunked"},
    "environ_overrides": {"CONTENT_LENGTH": "", "wsgi.input_terminated": True},
}
BODY_HOOKS = [
    read_stream,
    read_data,
    read_cached_data,
    read_start,
    read_lines,
    read_text,
    read_buffered,
    read_into_memory,
    read_form,
]


@pytest.mark.parametrize("hook", BODY_HOOKS, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("is_chunked", [False, True], ids=["length", "chunked"])
def test_a_hook_can_read_the_body_first(
    app: Flask, caplog: pytest.LogCaptureFixture, hook: Callable[[], None], is_chunked: bool
) -> None:
    """The callback is stored as it was sent, although the stream was read before."""
    app.before_request(hook)
    body = json.dumps(PACKET).encode()
    options: dict[str, Any] = {"data": body, "content_type": "application/json"}
    if hook is read_form:
        options["content_type"] = "application/x-www-form-urlencoded"
    if is_chunked:
        options |= CHUNKED
    response = post_openim(app, json=None, **options)
    assert (response.status_code, response.get_json()) == (200, CONTINUE)
    assert "failed" not in caplog.text
    deliveries, removals = rows(app)
    assert deliveries[0]["body"] == body
    assert [row["target_id"] for row in removals] == ["bob"]


def test_a_hook_can_remove_the_values_of_the_url(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """An app with languages in its URLs removes them from the values, and may remove ours, too."""

    @app.url_value_preprocessor
    def remove_values(_: str | None, values: dict[str, Any] | None) -> None:
        if values:
            values.clear()

    assert post_openim(app).status_code == 200
    assert "failed" not in caplog.text
    assert len(rows(app)[1]) == 1


def test_a_body_that_a_hook_has_read_has_the_same_limit(make_app: MakeApp) -> None:
    """A chunked body above the maximum is still 413, and memory stays bounded."""
    app = make_app(**SETTINGS, IMCALLBACK_MAX_BODY=1000)
    app.before_request(read_stream)
    for size, status in ((1000, 400), (1001, 413), (1_000_000, 413)):
        response = post_openim(app, json=None, data=b" " * size, **CHUNKED)
        assert response.status_code == status


# Hooks that change the answer


def wrap_json(response: Response) -> Response:
    return jsonify(code=0, data=response.get_json())


def fail_after(response: Response) -> Response:
    raise KeyError("on purpose")


def redirect_after(response: Response) -> Response:
    return redirect("/elsewhere")  # type: ignore[return-value]


def use_missing_start(response: Response) -> Response:
    response.headers["X-Seconds"] = str(g.started)
    return response


def compress(response: Response) -> Response:
    response.data = b"compressed"
    response.headers["Content-Encoding"] = "br"
    return response


AFTER_HOOKS = [wrap_json, fail_after, redirect_after, use_missing_start, compress]


@pytest.mark.parametrize("hook", AFTER_HOOKS, ids=lambda hook: hook.__name__)
@pytest.mark.parametrize("is_testing", [False, True], ids=["handled", "propagated"])
def test_no_hook_changes_the_answer(
    app: Flask, hook: Callable[[Response], Response], is_testing: bool
) -> None:
    """OpenIM can stop its users after another answer, so it gets ours over a real socket."""
    app.after_request(hook)
    app.testing = is_testing
    response = post_openim(app)
    assert (response.status_code, response.get_json()) == (200, CONTINUE)
    assert "Content-Encoding" not in response.headers
    assert "Location" not in response.headers
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Content-Length"] == str(len(response.data))
    assert len(rows(app)[1]) == 1
    assert refusals(app) == {}


def test_headers_of_the_host_stay(app: Flask) -> None:
    """A hook may add headers, for example the id of the request."""

    @app.after_request
    def mark(response: Response) -> Response:
        response.headers["X-Request-ID"] = "7"
        return response

    assert post_openim(app).headers["X-Request-ID"] == "7"
    assert app.test_client().head(OPENIM_URL).data == b""


def test_a_middleware_that_answers_late(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    """A middleware of the host can be a generator, which starts the response when it is read."""
    inner = Flask.wsgi_app

    def generator(app: Flask, environ: Any, start_response: Any) -> Any:
        yield from inner(app, environ, start_response)

    monkeypatch.setattr(Flask, "wsgi_app", generator)
    app = make_app(**SETTINGS)
    app.after_request(wrap_json)
    assert post_openim(app).get_json() == CONTINUE


# Headers of the page and of the history


def use_other_policy(app: Flask) -> None:
    @app.after_request
    def change(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = "default-src *"
        response.headers.add("Content-Security-Policy", "script-src *")
        response.headers["cache-control"] = "public, max-age=60"
        del response.headers["X-Content-Type-Options"]
        return response


def use_talisman(app: Flask) -> None:
    Talisman(
        app, force_https=False, content_security_policy="default-src *", referrer_policy="origin"
    )


@pytest.mark.parametrize("set_up", [use_other_policy, use_talisman])
@pytest.mark.parametrize("path", ["", "history", "openapi.json", "removal/1", "history?x=y"])
def test_the_headers_of_our_pages_win(app: Flask, set_up: SetUp, path: str) -> None:
    """Hooks of the host change neither the policy nor the caching of our URLs."""
    app.add_url_rule("/", view_func=lambda: "", endpoint="home")
    set_up(app)
    headers = read(app, f"/imcallback/{path}").headers
    assert {name: headers.getlist(name) for name in RESPONSE_HEADERS} == {
        name: [value] for name, value in RESPONSE_HEADERS.items()
    }
    home = app.test_client().get("/").headers
    assert home["Content-Security-Policy"].startswith("default-src *")


def test_files_of_the_page_stay_cached(app: Flask) -> None:
    """A hook that forbids caching does not reach them."""
    use_other_policy(app)
    path = f"/imcallback/page/{URL_PATHS['page.css']}"
    assert read(app, path).headers.getlist("Cache-Control") == [
        "private, max-age=31536000, immutable"
    ]


# Secrets in spans, labels and logs


class Watched:
    """Everything that hooks and extensions of the host learn about callbacks."""

    def __init__(
        self, app: Flask, excluded_urls: str | None = None, excluded_paths: Any = None
    ) -> None:
        self._spans = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._spans))
        self._registry = CollectorRegistry()
        self._seen: list[str] = []
        PrometheusMetrics(app, registry=self._registry, excluded_paths=excluded_paths)
        instrumentor: Any = FlaskInstrumentor()
        instrumentor.instrument_app(
            app, tracer_provider=self._provider, excluded_urls=excluded_urls
        )
        app.before_request(self._look)
        app.teardown_request(self._look)

    def _look(self, error: BaseException | None = None) -> None:
        self._seen += [request.url, request.full_path, str(request.args), repr(request.view_args)]
        self._seen += [repr(request), repr(request.environ)]

    def spans(self) -> str:
        return "".join(span.to_json() for span in self._spans.get_finished_spans())

    def labels(self) -> str:
        return generate_latest(self._registry).decode()

    def text(self) -> str:
        return self.spans() + self.labels() + "".join(self._seen)


URL_VARIABLES = ("RAW_URI", "REQUEST_URI")


def test_no_secret_reaches_spans_labels_and_hooks(app: Flask) -> None:
    """OpenTelemetry, prometheus-flask-exporter and hooks see neither secret path nor Sign."""
    watched = Watched(app)
    url, sign = tencent_url()
    for path, packet in ((OPENIM_URL, PACKET), (url, TENCENT_PACKET)):
        for _ in range(2):
            variables = dict.fromkeys(URL_VARIABLES, f"{path}")
            response = app.test_client().post(path, json=packet, environ_overrides=variables)
            assert response.status_code == 200
    text = watched.text()
    assert text.count("http.target") >= 4
    assert 'path="/imcallback/openim"' in text
    assert "Sns.CallbackFriendDelete" in text
    for secret in (SECRET, sign):
        assert secret not in text


def test_callbacks_can_be_left_out(app: Flask) -> None:
    """With the documented settings, callbacks make neither spans nor metrics."""
    page = (ROOT / "docs/deployment.md").read_text("utf-8")
    (urls,) = re.findall(r"OTEL_PYTHON_FLASK_EXCLUDED_URLS=(\S+)", page)
    (path,) = re.findall(r'excluded_paths=\["([^"]+)"\]', page)
    watched = Watched(app, urls, [path])
    assert post_openim(app).status_code == post_tencent(app).status_code == 200
    assert read(app, "/imcallback/history").status_code == 200
    assert re.findall(r'"http.target": "(.+?)"', watched.spans()) == ["/imcallback/history"]
    assert 'path="/imcallback/history"' in watched.labels()
    assert 'path="/imcallback/openim"' not in watched.labels()


def test_an_error_of_a_hook_is_logged_without_the_secret(
    app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """Flask writes the path of a failed request to its log."""
    app.after_request(fail_after)
    assert post_openim(app).status_code == 200
    assert "Exception on /imcallback/openim [POST]" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("is_inside", [True, False], ids=["inside", "outside"])
def test_a_tracer_belongs_inside(
    make_app: MakeApp, monkeypatch: pytest.MonkeyPatch, is_inside: bool
) -> None:
    """A middleware sees the secrets only if the host puts it around ours."""
    spans, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    if is_inside:
        monkeypatch.setattr(
            Flask,
            "wsgi_app",
            lambda *arguments, inner=Flask.wsgi_app: OpenTelemetryMiddleware(
                inner.__get__(arguments[0]), tracer_provider=provider
            )(*arguments[1:]),
        )
    app = make_app(**SETTINGS)
    if not is_inside:
        app.wsgi_app = OpenTelemetryMiddleware(  # type: ignore[method-assign]
            app.wsgi_app, tracer_provider=provider
        )
    assert post_openim(app).status_code == 200
    text = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "imcallback/openim" in text
    assert (SECRET in text) is not is_inside
