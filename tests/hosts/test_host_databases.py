"""A callback reaches the database of the host, in whatever way the host uses SQLAlchemy."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from flask import Flask, current_app
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    URL,
    Engine,
    MetaData,
    NullPool,
    StaticPool,
    create_engine,
    inspect,
    make_url,
    text,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from flask_imcallback import ConfigError, ImCallback, upgrade
from flask_imcallback.runtime import EXTENSION
from support import engines, servers
from support.apps import close_connections, join
from support.callbacks import BODY, SECRET

TOKEN = "a-token-of-the-history-reader"
CALLBACK_URL = f"/imcallback/openim/{SECRET}/callbackAfterRemoveBlackCommand"
SETTINGS = {
    "IMCALLBACK_SECRETS": [SECRET],
    "IMCALLBACK_HISTORY_TOKENS": [TOKEN],
    # Without a spool, 200 means that the database has the callback.
    "IMCALLBACK_SPOOL": None,
    "IMCALLBACK_DEADLINE": 20,
}

QUERIES = ["", "owner_id=a", "account_id=a&account_id=z&peer_id=b", "client_ip=&target_id=b"]
"""Queries that need each kind of statement."""

MakeHost = Callable[..., Flask]
Wiring = Callable[[Flask, URL], None]


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[MakeHost]:
    """Make apps that a wiring sets up. Their connections are closed at the end."""
    apps: list[Flask] = []

    def make(wire: Callable[[Flask], object], **config: Any) -> Flask:
        app = Flask(f"host{len(apps)}", instance_path=str(tmp_path / f"instance{len(apps)}"))
        app.config.update(SETTINGS, **config)
        wire(app)
        apps.append(app)
        return app

    yield make
    for file in tmp_path.rglob("spool.db"):
        file.unlink()  # ends the thread that empties it
    join("imcallback-drain", "imcallback-health")
    for app in apps:
        if EXTENSION in app.extensions:
            close_connections(app)


def migrate(app: Flask) -> None:
    with app.app_context():
        upgrade()


def post(app: Flask, owner_id: str = "a") -> int:
    """Post a callback, and return the status of the answer."""
    answer = app.test_client().post(CALLBACK_URL, json={**BODY, "ownerUserID": owner_id})
    return answer.status_code


def get(app: Flask, path: str) -> Any:
    """Return the JSON of a URL of the history."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = app.test_client().get(f"/imcallback/{path}", headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.get_json()


def find_owners(app: Flask, query: str = "") -> list[str]:
    """Return the owners of the removals in the history that match a query, by default all."""
    return [record["owner_id"] for record in get(app, f"history?{query}")["data"]]


def stored_owners(url: URL) -> list[str]:
    """Return the owners of all removals that a database has, on a connection of its own."""
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            return list(connection.scalars(text("SELECT owner_id FROM imcallback_removal")))
    finally:
        engine.dispose()


def check(app: Flask, url: URL) -> None:
    """Create the tables, post a callback, and read it from the history and the database."""
    migrate(app)
    assert post(app) == 200
    for query in QUERIES:
        assert find_owners(app, query) == ["a"]
    for query in ("", "group_by=command", "account_id=a&account_id=z"):
        counts = get(app, f"history/stats?{query}")["data"]
        assert [count["count"] for count in counts] == [1]
    assert stored_owners(url) == ["a"]


def object_of_the_app(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    SQLAlchemy(app)
    ImCallback(app)


def object_that_is_passed(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    ImCallback(app, db=SQLAlchemy(app))


def object_that_comes_later(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    ImCallback(app)
    SQLAlchemy(app)


def no_object(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    ImCallback(app)


def bind(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///host.db"
    app.config["SQLALCHEMY_BINDS"] = {"callbacks": url}
    app.config["IMCALLBACK_BIND_KEY"] = "callbacks"
    SQLAlchemy(app)
    ImCallback(app)


def binds_without_a_bind_key(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    app.config["SQLALCHEMY_BINDS"] = {"other": "sqlite:///other.db"}
    SQLAlchemy(app)
    ImCallback(app)


def schema_and_naming_convention(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = url
    convention = {"pk": "host_pk_%(table_name)s", "uq": "host_uq_%(table_name)s"}
    SQLAlchemy(app, metadata=MetaData(schema="host", naming_convention=convention))
    ImCallback(app)


def new_lite(app: Flask) -> Any:
    """Return the object of Flask-SQLAlchemy-Lite, which old releases of Flask cannot import."""
    from flask_sqlalchemy_lite import SQLAlchemy as Lite

    return Lite(app)


def lite_object_of_the_app(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_ENGINES"] = {"default": url}
    new_lite(app)
    ImCallback(app)


def lite_object_that_is_passed(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_ENGINES"] = {"default": url}
    ImCallback(app, db=new_lite(app))


def lite_bind(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_ENGINES"] = {"default": "sqlite:///host.db", "callbacks": url}
    app.config["IMCALLBACK_BIND_KEY"] = "callbacks"
    new_lite(app)
    ImCallback(app)


def plain_engine(app: Flask, url: URL) -> None:
    ImCallback(app, engine=create_engine(url))


def plain_engine_beside_flask_sqlalchemy(app: Flask, url: URL) -> None:
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite:///host.db"
    SQLAlchemy(app)
    ImCallback(app, engine=create_engine(url))


def plain_engine_of_one_app(app: Flask, url: URL) -> None:
    ImCallback(engine=create_engine("sqlite:///another.db")).init_app(
        app, engine=create_engine(url)
    )


def engine_function(app: Flask, url: URL) -> None:
    created: list[Engine] = []
    ImCallback(app, engine=lambda: created[0])
    created.append(create_engine(url))


def engine_function_in_an_app_context(app: Flask, url: URL) -> None:
    app.config["DATABASE"] = url
    ImCallback(app, engine=lambda: create_engine(current_app.config["DATABASE"]))


def engine_of_a_session(app: Flask, url: URL) -> None:
    session = scoped_session(sessionmaker(create_engine(url)))
    app.teardown_appcontext(lambda _: session.remove())
    ImCallback(app, engine=lambda: session().connection().engine)


LITE_WIRINGS: list[Wiring] = (
    [lite_object_of_the_app, lite_object_that_is_passed, lite_bind] if engines.HAS_LITE else []
)
WIRINGS: list[Wiring] = [
    object_of_the_app,
    object_that_is_passed,
    object_that_comes_later,
    no_object,
    bind,
    binds_without_a_bind_key,
    schema_and_naming_convention,
    *LITE_WIRINGS,
    plain_engine,
    plain_engine_beside_flask_sqlalchemy,
    plain_engine_of_one_app,
    engine_function,
    engine_function_in_an_app_context,
    engine_of_a_session,
]


@pytest.mark.parametrize("wire", WIRINGS, ids=lambda wire: wire.__name__)
def test_a_callback_reaches_the_database(
    wire: Wiring, database_url: URL, make_host: MakeHost
) -> None:
    """The callback is in the host's database, and no other database was created."""
    app = make_host(lambda app: wire(app, database_url))
    check(app, database_url)
    assert not list(Path(app.instance_path).glob("*.db"))


def test_our_tables_ignore_the_metadata_of_the_host(tmp_path: Path, make_host: MakeHost) -> None:
    """The schema and the naming convention of the host's models do not change our tables."""
    url = URL.create("sqlite", database=str(tmp_path / "test.db"))
    migrate(make_host(lambda app: schema_and_naming_convention(app, url)))
    inspector = inspect(create_engine(url, poolclass=NullPool))
    name = inspector.get_pk_constraint("imcallback_removal")["name"]
    assert name == "pk_imcallback_removal"


@pytest.fixture
def url_of(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[str], URL]]:
    """Return a function that returns the URL of an empty database of a kind."""
    with ExitStack() as stack:

        def url(kind: str) -> URL:
            if kind == "sqlite":
                return URL.create("sqlite", database=str(tmp_path / "test.db"))
            database_servers = request.getfixturevalue("database_servers")
            return stack.enter_context(servers.database(database_servers[kind]))

        yield url


@pytest.mark.parametrize(("name", "database"), engines.CASES)
def test_an_engine_with_the_options_of_a_host(
    name: str, database: str, url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """Pools, isolation levels and event listeners of the host do not matter."""
    url = url_of(database)
    engine = engines.HOSTS[name][0](url)
    check(make_host(lambda app: ImCallback(app, engine=engine)), url)


OPTIONS: dict[str, dict[str, Any]] = {
    "pool_size": {"pool_size": 1, "max_overflow": 0},
    "NullPool": {"poolclass": NullPool},
    "AUTOCOMMIT": {"isolation_level": "AUTOCOMMIT"},
    "pre_ping": {"pool_pre_ping": True, "pool_recycle": 60},
    "insertmanyvalues": {"use_insertmanyvalues": False},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=list(OPTIONS))
def test_engine_options_of_flask_sqlalchemy(
    options: dict[str, Any], database_url: URL, make_host: MakeHost
) -> None:
    """The options in `SQLALCHEMY_ENGINE_OPTIONS` do not matter."""
    config = {"SQLALCHEMY_ENGINE_OPTIONS": options}
    app = make_host(lambda app: object_of_the_app(app, database_url), **config)
    check(app, database_url)


@pytest.mark.parametrize(
    ("database", "driver"),
    [(database, driver) for database, drivers in engines.DRIVERS.items() for driver in drivers],
)
@pytest.mark.parametrize("wire", [object_of_the_app, *LITE_WIRINGS[:1], plain_engine])
def test_each_driver(
    wire: Wiring, database: str, driver: str, url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """The host chooses the driver."""
    url = url_of(database)
    check(make_host(lambda app: wire(app, url.set(drivername=driver))), url)


@pytest.mark.parametrize(
    ("driver", "query"),
    [
        (driver, query)
        for driver in engines.DRIVERS["mariadb"]
        for query in ({"charset": "utf8"}, {"charset": "latin1"}, {})
        if not query or driver != "mariadb+mariadbconnector"  # has no option charset
    ],
    ids=str,
)
def test_a_character_set_in_the_url(
    driver: str, query: dict[str, str], url_of: Callable[[str], URL], make_host: MakeHost
) -> None:
    """Many tutorials have `?charset=utf8`, which has no emoji and no rare Han characters."""
    url = url_of("mariadb").set(drivername=driver).update_query_dict(query)
    app = make_host(lambda app: object_of_the_app(app, url))
    migrate(app)
    assert post(app, "\U00020bb7\U0001f600") == 200
    assert find_owners(app) == ["\U00020bb7\U0001f600"]


def test_a_creator_of_connections(tmp_path: Path, make_host: MakeHost) -> None:
    """An engine with `creator` has a URL that leads nowhere."""
    path = tmp_path / "test.db"
    engine = create_engine(
        "sqlite://",
        creator=lambda: sqlite3.connect(path, check_same_thread=False),
    )
    app = make_host(lambda app: ImCallback(app, engine=engine))
    check(app, URL.create("sqlite", database=str(path)))


def test_a_database_in_memory(make_host: MakeHost) -> None:
    """A database in memory works with a static pool, which all threads share."""
    engine = create_engine(
        "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
    )
    app = make_host(lambda app: ImCallback(app, engine=engine))
    migrate(app)
    assert post(app) == 200
    assert find_owners(app) == ["a"]


def test_a_database_in_memory_of_flask_sqlalchemy(make_host: MakeHost) -> None:
    """Tests of hosts use `sqlite://`, for which Flask-SQLAlchemy has a static pool."""
    app = make_host(lambda app: object_of_the_app(app, make_url("sqlite://")))
    migrate(app)
    assert post(app) == 200
    assert find_owners(app) == ["a"]


ORDERS = ["".join(order) for order in permutations("dit")]


@pytest.mark.parametrize("order", ORDERS)
def test_an_app_factory_in_any_order(order: str, tmp_path: Path, make_host: MakeHost) -> None:
    """Objects at module level are initialized in any order, also within an app context."""
    url = URL.create("sqlite", database=str(tmp_path / "test.db"))
    db, imcallback = SQLAlchemy(), ImCallback()

    with ExitStack() as contexts:

        def wire(app: Flask) -> None:
            app.config["SQLALCHEMY_DATABASE_URI"] = url
            steps: dict[str, Callable[[], object]] = {
                "d": lambda: db.init_app(app),
                "i": lambda: imcallback.init_app(app),
                "t": lambda: contexts.enter_context(app.app_context()),
            }
            for step in order:
                steps[step]()

        app = make_host(wire)
        check(app, url)


def test_apps_with_one_extension_object(tmp_path: Path, make_host: MakeHost) -> None:
    """Each app of a process records into its own database."""
    db, imcallback = SQLAlchemy(), ImCallback()
    urls = [URL.create("sqlite", database=str(tmp_path / f"{name}.db")) for name in "ab"]

    def wire(app: Flask) -> None:
        db.init_app(app)
        imcallback.init_app(app)

    apps = [make_host(wire, SQLALCHEMY_DATABASE_URI=url) for url in urls]
    for app, owner_id in zip(apps, "ab", strict=True):
        migrate(app)
        assert post(app, owner_id) == 200
    assert [find_owners(app) for app in apps] == [["a"], ["b"]]
    assert [stored_owners(url) for url in urls] == [["a"], ["b"]]


def test_apps_with_one_engine(tmp_path: Path, make_host: MakeHost) -> None:
    """Two apps may share an engine."""
    url = URL.create("sqlite", database=str(tmp_path / "test.db"))
    imcallback = ImCallback(engine=create_engine(url))
    first, second = make_host(imcallback.init_app), make_host(imcallback.init_app)
    migrate(first)
    assert post(first, "a") == post(second, "b") == 200
    assert sorted(find_owners(first)) == sorted(stored_owners(url)) == ["a", "b"]


# Wrong wiring

PASS_A_DB = "pass the SQLAlchemy object of Flask-SQLAlchemy, or pass an engine as engine"
PASS_AN_ENGINE = (
    r"pass a SQLAlchemy Engine, for example create_engine\(url\), or a function that returns one"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"db": create_engine("sqlite://")},
            "^db is an object of the type Engine: pass it as engine$",
        ),
        ({"db": Session}, f"^db is the class Session: {PASS_A_DB}$"),
        (
            {"db": scoped_session(sessionmaker())},
            f"^db is an object of the type scoped_session: {PASS_A_DB}$",
        ),
        ({"db": SQLAlchemy}, f"^db is the class SQLAlchemy: {PASS_A_DB}$"),
        ({"db": "sqlite://"}, f"^db is an object of the type str: {PASS_A_DB}$"),
        (
            {"engine": "postgresql://user:pass-word@db.example/app"},
            f"^engine is an object of the type str: {PASS_AN_ENGINE}$",
        ),
        ({"engine": Session}, f"^engine is the class Session: {PASS_AN_ENGINE}$"),
        (
            {"engine": SQLAlchemy()},
            f"^engine is an object of the type SQLAlchemy: {PASS_AN_ENGINE}$",
        ),
        (
            {"db": SQLAlchemy(), "engine": create_engine("sqlite://")},
            "^ImCallback has both db and engine: pass only one of them$",
        ),
    ],
    ids=[
        "db=engine",
        "db=Session",
        "db=scoped_session",
        "db=SQLAlchemy",
        "db=text",
        "engine=text",
        "engine=Session",
        "engine=SQLAlchemy()",
        "db and engine",
    ],
)
def test_a_wrong_argument_stops_the_start(
    arguments: dict[str, Any], message: str, make_host: MakeHost
) -> None:
    """The error is one line with the value and the remedy, and without a password."""
    with pytest.raises(ConfigError, match=message) as caught:
        make_host(lambda app: ImCallback(app, **arguments))
    assert "\n" not in str(caught.value)
    assert "pass-word" not in str(caught.value)


def test_an_engine_with_a_bind_key_stops_the_start(make_host: MakeHost) -> None:
    """A plain engine has no binds."""
    engine = create_engine("sqlite://")
    message = "^IMCALLBACK_BIND_KEY is 'there', but ImCallback has an engine: unset the key$"
    with pytest.raises(ConfigError, match=message):
        make_host(lambda app: ImCallback(app, engine=engine), IMCALLBACK_BIND_KEY="there")


@pytest.mark.parametrize(
    ("wire", "binds"),
    [
        (object_of_the_app, "'there', None"),
        *((wire, "'default'") for wire in LITE_WIRINGS[:1]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_an_unknown_bind_stops_the_start(wire: Wiring, binds: str, make_host: MakeHost) -> None:
    """The error names the bind keys that exist."""
    config = {"IMCALLBACK_BIND_KEY": "nowhere", "SQLALCHEMY_BINDS": {"there": "sqlite://"}}
    message = rf"^IMCALLBACK_BIND_KEY is 'nowhere', but .*: use one of {binds}$"
    with pytest.raises(ConfigError, match=message):
        make_host(lambda app: wire(app, make_url("sqlite://")), **config)


def test_an_object_of_another_app_stops_the_start(make_host: MakeHost) -> None:
    """An app has one `SQLAlchemy` object, so that another one is never initialized for it."""

    def wire(app: Flask) -> None:
        app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
        SQLAlchemy(app)
        ImCallback(app, db=SQLAlchemy())

    message = r"^db is not initialized for this app \(.*\): call db\.init_app\(app\)$"
    with pytest.raises(ConfigError, match=message):
        make_host(wire)


def test_an_object_that_is_never_initialized(make_host: MakeHost) -> None:
    """The first use says what is missing."""
    app = make_host(lambda app: ImCallback(app, db=SQLAlchemy()))
    with pytest.raises(ConfigError, match=r"call db\.init_app\(app\)$"):
        migrate(app)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: None, "^the engine of the database is None: pass a SQLAlchemy Engine"),
        (sessionmaker(), r"^the engine of the database is <.*Session.*>: pass a SQLAlchemy Eng"),
    ],
    ids=["None", "sessionmaker"],
)
def test_an_engine_function_that_returns_no_engine(
    function: Any, message: str, make_host: MakeHost
) -> None:
    """The first use names what the function returned."""
    app = make_host(lambda app: ImCallback(app, engine=function))
    with pytest.raises(ConfigError, match=message):
        migrate(app)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("nonsense", "ArgumentError: "),
        ("oracle+nonsense://db.example/app", "NoSuchModuleError: "),
    ],
)
def test_an_unusable_url(url: str, problem: str, make_host: MakeHost) -> None:
    """The first use names the setting, if the extension creates the `SQLAlchemy` object."""
    app = make_host(ImCallback, SQLALCHEMY_DATABASE_URI=url)
    message = (
        rf"^cannot create an engine \({problem}.*\): check SQLALCHEMY_DATABASE_URI, or run flask "
        "imcallback doctor$"
    )
    with pytest.raises(ConfigError, match=message):
        migrate(app)


class QuartLike:
    """An app of another framework."""

    extensions: dict[str, object] = {}


def test_an_app_of_another_framework_stops_the_start() -> None:
    """The error names the class of the app."""
    message = r"QuartLike is not a Flask app: pass the Flask app, or run flask-imcallback in its "
    with pytest.raises(ConfigError, match=message):
        ImCallback(QuartLike())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [{"db": SQLAlchemy()}, {"engine": lambda: 1 / 0}],
    ids=["an object that is never initialized", "a function that fails"],
)
def test_the_spool_takes_what_a_wrong_database_does_not(
    arguments: dict[str, Any], make_host: MakeHost
) -> None:
    """No callback is lost while the wiring is wrong."""
    app = make_host(lambda app: ImCallback(app, **arguments), IMCALLBACK_SPOOL="spool.db")
    assert post(app) == 200
