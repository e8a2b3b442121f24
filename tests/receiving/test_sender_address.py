"""The IP address of the sender behind a proxy."""

from __future__ import annotations

import logging

import pytest
from werkzeug.middleware.proxy_fix import ProxyFix

from flask_imcallback.runtime import get_runtime
from support.apps import MakeApp, rows, save_counts
from support.callbacks import BODY

URL = "/imcallback/openim/callbackAfterRemoveBlackCommand"
SETTINGS = {
    "IMCALLBACK_ALLOW_UNAUTHENTICATED": True,
    "IMCALLBACK_ALLOWED_NETWORKS": ["203.0.113.0/24"],
}


def test_a_proxy_may_add_the_port(make_app: MakeApp) -> None:
    """The callback is accepted, and the delivery has the address as the proxy sent it."""
    app = make_app(**SETTINGS)
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    headers = {"X-Forwarded-For": "203.0.113.9:51008"}
    assert app.test_client().post(URL, json=BODY, headers=headers).status_code == 200
    (delivery,), _ = rows(app)
    assert delivery["remote_addr"] == "203.0.113.9:51008"


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        (
            "unknown",
            "the IP address of the sender cannot be read: check ProxyFix and the proxy "
            "(the address is 'unknown')",
        ),
        (
            "192.0.2.1:80",
            "the IP address of the sender is not in IMCALLBACK_ALLOWED_NETWORKS "
            "(the address is '192.0.2.1:80')",
        ),
    ],
)
def test_a_refusal_names_the_address_once_a_minute(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, address: str, problem: str
) -> None:
    """The log tells a wrong proxy from a wrong network. The sender learns neither."""
    app = make_app(**SETTINGS)
    app.wsgi_app = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
    client, headers = app.test_client(), {"X-Forwarded-For": address}
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            response = client.post(URL, json=BODY, headers=headers)
            assert response.status_code == 403
            assert address not in response.text
    refusals = [line for line in caplog.messages if line.startswith("Refused")]
    assert refusals == [f"Refused a callback of openim: {problem}."]
    with app.app_context():
        save_counts(app)
        (count,) = get_runtime().counters.counts()
    assert (count.count, count.name) == (3, problem.partition(" (")[0])
