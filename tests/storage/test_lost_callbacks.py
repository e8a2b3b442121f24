"""A callback that no store takes is seen by somebody, whatever the host did to its log."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from logging.config import dictConfig
from pathlib import Path
from typing import Any

import pytest

from flask_imcallback.storage.lost_callbacks import is_log_visible
from support.apps import MakeApp
from support.callbacks import BODY, SECRET
from support.loggers import keeping_enabled_loggers

NO_CONFIG: dict[str, Any] = {"version": 1, "disable_existing_loggers": True}


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The logger of the extension. Its state is restored, and pytest's own handlers are hidden."""
    logger, root = logging.getLogger("flask_imcallback"), logging.getLogger()
    handlers, root.handlers = root.handlers, []
    with keeping_enabled_loggers():
        yield logger
    root.handlers = handlers
    logger.handlers, logger.propagate, logger.level = [], True, logging.NOTSET
    logging.disable(logging.NOTSET)


def file_config(logger: logging.Logger) -> None:
    """As `fileConfig()` in Alembic's template does."""
    dictConfig(NO_CONFIG)


def no_handler(logger: logging.Logger) -> None:
    logger.addHandler(logging.NullHandler())
    logger.propagate = False


def high_level(logger: logging.Logger) -> None:
    logger.setLevel(logging.CRITICAL)


def high_handler(logger: logging.Logger) -> None:
    handler = logging.StreamHandler()
    handler.setLevel(logging.CRITICAL)
    logger.addHandler(handler)
    logger.propagate = False


def switched_off(logger: logging.Logger) -> None:
    logging.disable(logging.CRITICAL)


@pytest.mark.parametrize(
    "silence", [file_config, no_handler, high_level, high_handler, switched_off]
)
def test_a_lost_packet_is_on_stderr_if_the_log_is_off(
    silence: Any,
    logger: logging.Logger,
    make_app: MakeApp,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The packet and the reason are on stderr, and the secret is not."""
    app = make_app(migrate=False, IMCALLBACK_SPOOL=None, IMCALLBACK_SECRETS=[SECRET])
    silence(logger)
    assert not is_log_visible()
    url = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
    packet = BODY | {"ownerUserID": "needle"}
    assert app.test_client().post(url, json=packet).status_code == 503
    errors = capsys.readouterr().err
    (line,) = errors.splitlines()
    content = json.loads(line)
    assert content["flask_imcallback_lost"].startswith(
        "A callback of openim is lost: cannot store the callback (OperationalError: no such table"
    )
    assert json.loads(content["body"]) == packet
    assert SECRET not in errors


def test_a_lost_packet_is_logged_once_if_the_log_is_on(
    make_app: MakeApp, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """A visible log holds the packet, and stderr does not repeat it."""
    app = make_app(migrate=False, IMCALLBACK_SPOOL=None, IMCALLBACK_SECRETS=[SECRET])
    assert is_log_visible()
    url = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
    app.test_client().post(url, json=BODY | {"ownerUserID": "needle"})
    assert [record.levelname for record in caplog.records if "needle" in record.message] == [
        "ERROR"
    ]
    assert "needle" not in capsys.readouterr().err
