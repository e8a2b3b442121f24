"""A host tests its app with a database in memory, whose only connection it uses itself."""

from __future__ import annotations

import threading
import time

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import event, text

from flask_imcallback import ImCallback, upgrade
from flask_imcallback.runtime import get_runtime
from support.callbacks import BODY, SECRET

TOKEN = "a-token-of-readers"
CALLBACK_URL = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"


@pytest.fixture
def app(tmp_path_factory: pytest.TempPathFactory) -> Flask:
    """An app with the static pool that Flask-SQLAlchemy chooses for `sqlite://`."""
    app = Flask("host", instance_path=str(tmp_path_factory.mktemp("instance")))
    app.config.update(
        SECRET_KEY="a secret key of the tests",
        SQLALCHEMY_DATABASE_URI="sqlite://",
        IMCALLBACK_SECRETS=[SECRET],
        IMCALLBACK_HISTORY_TOKENS=[TOKEN],
    )
    SQLAlchemy(app)
    ImCallback(app)
    with app.app_context():
        upgrade()
    return app


def test_only_the_thread_of_the_caller_uses_the_connection(app: Flask) -> None:
    """Callbacks, their counts, the feed and the health check need no other thread."""
    threads: set[str] = set()
    db: SQLAlchemy = app.extensions["sqlalchemy"]
    with app.app_context():
        event.listen(db.engine, "checkout", lambda *_: threads.add(threading.current_thread().name))
    client = app.test_client()
    for _ in range(3):
        assert client.post(CALLBACK_URL, json=BODY).status_code == 200
    headers = {"Authorization": f"Bearer {TOKEN}"}
    health = client.get("/imcallback/health", headers=headers).get_json()
    assert health["callbacks"][0]["count"] == 3
    feed = client.get("/imcallback/feed", headers=headers).get_json()
    assert [removal["log_position"] for removal in feed["data"]] == [1, 2, 3]
    time.sleep(0.5)  # the time in which a thread would have numbered the log
    assert threads == {threading.current_thread().name}


def test_a_transaction_of_the_host_is_its_own(app: Flask) -> None:
    """A row that the host rolls back after a callback is not stored."""
    db: SQLAlchemy = app.extensions["sqlalchemy"]
    with app.app_context():
        db.session.execute(text("CREATE TABLE host (x INTEGER)"))
        db.session.commit()
    for _ in range(20):
        assert app.test_client().post(CALLBACK_URL, json=BODY).status_code == 200
        with app.app_context():
            db.session.execute(text("INSERT INTO host VALUES (1)"))
            time.sleep(0.03)
            db.session.rollback()
            assert db.session.scalar(text("SELECT count(*) FROM host")) == 0


def test_a_callback_that_cannot_be_stored_is_refused(app: Flask) -> None:
    """The spool is for databases that are unavailable. This one has no table for the callback."""
    db: SQLAlchemy = app.extensions["sqlalchemy"]
    with app.app_context():
        db.session.execute(text("DROP TABLE imcallback_removal"))
        db.session.commit()
        assert app.test_client().post(CALLBACK_URL, json=BODY).status_code == 503
        drain = get_runtime().drain
        assert drain
        assert not drain.spool.path.exists()


def test_threads_of_a_test_server_store_each_callback_once(app: Flask) -> None:
    """Callbacks that arrive at once wait for each other."""

    def post() -> None:
        for _ in range(20):
            answers.append(app.test_client().post(CALLBACK_URL, json=BODY).status_code)

    assert app.test_client().post(CALLBACK_URL, json=BODY).status_code == 200
    db: SQLAlchemy = app.extensions["sqlalchemy"]
    with app.app_context():  # let other threads run between the statements
        event.listen(db.engine, "before_cursor_execute", lambda *_: time.sleep(0.001))
    answers: list[int] = []
    threads = [threading.Thread(target=post) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [200] * 80
    with app.app_context(), get_runtime().engine().connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM imcallback_removal")) == 81
