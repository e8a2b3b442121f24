"""Fills a migrated database with plausible removals, at bulk speed.

The rows come behind the newest delivery that is there, and end at `--until`. The same options give
the same rows in the same database.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import click
from sqlalchemy import (
    URL,
    Connection,
    NullPool,
    Table,
    UniqueConstraint,
    create_engine,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from sqlalchemy.schema import AddConstraint, DropConstraint

from flask_imcallback.providers import OpenIMProvider, TencentProvider
from flask_imcallback.providers.openim import account_members
from flask_imcallback.storage.ids import id_at, moment_of
from flask_imcallback.storage.tables import delivery, removal, source

ACCOUNTS, MIN_ACCOUNTS = 1_000_000, 1000
DAYS = 365.0
GAP = timedelta(milliseconds=1)
"""At least, for each removal on average; else ids would be moved up behind the end."""
CHUNK = 10_000
"""Removals that are inserted at once, about; more do not get quicker."""
CACHE_KIB = 256 * 1024

TENCENT_SHARE = 0.6
"""Of the removals; the other shares are of a provider's callbacks."""
APPS = {"1400483163": 0.95, "1400722522": 0.05}
COMMANDS = {"Sns.CallbackFriendDelete": 0.8, "Sns.CallbackBlackListDelete": 0.2}
OPENIM_COMMANDS = {
    "callbackAfterDeleteFriendCommand": 0.85,
    "callbackAfterRemoveBlackCommand": 0.15,
}
PLATFORMS = {
    "Android": 0.46,
    "iOS": 0.32,
    "RESTAPI": 0.09,
    "Windows": 0.05,
    "Web": 0.048,
    "Mac": 0.02,
    "iPad": 0.0103,
    "Mini": 0.0017,  # a thousandth of all removals
}
LISTS = range(3, 21)
SIZES = {1: 0.88, 2: 0.09, 500: 0.0004} | dict.fromkeys(LISTS, 0.0296 / len(LISTS))
"""Pairs in a packet of Tencent; one of OpenIM has one."""
WITHOUT_REQUEST_ID = 0.1
AWAY = 0.05
"""Of the callbacks with an address: those with another than the account's own."""
SHARED_ADDRESSES = 200
SERVER = "192.0.2.10"
"""From where the app's own server calls Tencent's REST API."""

ZONE = timezone(timedelta(hours=8))
HOURS = [5, 3, 2, 1, 1, 1, 2, 4, 6, 8, 9, 10, 12, 11, 9, 9, 9, 10, 12, 14, 16, 17, 15, 10]
WEEKDAYS = [1.0, 0.95, 0.95, 1.0, 1.1, 1.35, 1.3]
"""How busy each hour of a day is, and each day from Monday on."""
HOUR = timedelta(hours=1)

DELIVERY = (
    "id",
    "received_at",
    "provider",
    "app_id",
    "command",
    "status",
    "duplicate_of",
    "error",
    "removal_count",
    "remote_addr",
    "authenticated_by",
    "client_ip",
    "platform",
    "request_id",
    "query",
    "headers",
    "body",
    "fingerprint",
    "nonce",
)
REMOVAL = ("id", "delivery_id", "source_id", "owner_id", "target_id", "client_ip", "request_id")

Row = tuple[Any, ...]


class SeedError(Exception):
    """The database cannot be filled; the message says what to do."""


def fill(
    url: URL,
    removals: int,
    *,
    accounts: int = ACCOUNTS,
    days: float = DAYS,
    until: datetime | None = None,
    seed: int = 1,
) -> None:
    """Add so many removals, received in the days before `until` (aware; now if not given).

    Each provider has so many accounts. Raises `SeedError`.
    """
    if accounts < MIN_ACCOUNTS:
        raise SeedError(f"there must be at least {MIN_ACCOUNTS} accounts")
    path = url.database or ""
    if url.get_backend_name() == "sqlite" and not Path(path).exists():
        raise SeedError(f"the database {path!r} is not there: run `flask db upgrade`")
    until = until or datetime.now(UTC)
    with create_engine(url, poolclass=NullPool).connect() as connection:
        _check_tables(connection)
        free_id = _free_id(connection)
        start = max(until - timedelta(days=days), moment_of(free_id))
        if until < start + removals * GAP:
            raise SeedError(
                f"{removals} removals do not fit between {start} and {until}: give more --days, or "
                "an --until that is later than what is there"
            )
        callbacks = Callbacks(_source_ids(connection), accounts, seed, start)
        database = DATABASES[connection.dialect.name](connection, is_empty=free_id == 0)
        with database.filling():
            with click.progressbar(length=removals, label="Removals", file=sys.stderr) as bar:
                for rows in callbacks.chunks(removals, start, until):
                    database.insert(delivery, DELIVERY, rows.deliveries)
                    database.insert(removal, REMOVAL, rows.removals)
                    bar.update(len(rows.removals))
            print("Indexes", file=sys.stderr)
        database.analyze()


def _check_tables(connection: Connection) -> None:
    inspector = inspect(connection)
    for table in (source, delivery, removal):
        columns = inspector.get_columns(table.name) if inspector.has_table(table.name) else []
        if {column["name"] for column in columns} != set(table.c.keys()):
            raise SeedError(f"{table.name} is missing or old: run `flask db upgrade`")
    connection.commit()


def _free_id(connection: Connection) -> int:
    """The first behind all that are there; 0 if there are none."""
    newest = select(delivery.c.id, delivery.c.removal_count).order_by(delivery.c.id.desc())
    row = connection.execute(newest.limit(1)).one_or_none()
    connection.commit()
    return 0 if row is None else int(row.id + max(row.removal_count, 1))


class Source(NamedTuple):
    """What many removals share: the columns of the table, but for the id."""

    provider: str
    app_id: str
    command: str
    relation: str
    platform: str


def _kinds() -> dict[tuple[Source, int], float]:
    """The sources with the number of removals in a delivery, and how often they come."""
    kinds = {}
    for app_id, of_app in APPS.items():
        for command, of_command in COMMANDS.items():
            for platform, of_platform in PLATFORMS.items():
                relation = TencentProvider.commands[command].value
                its = Source("tencent", app_id, command, relation, platform)
                for size, of_size in SIZES.items():
                    kinds[its, size] = of_app * of_command * of_platform * of_size
    removals = sum(size * share for (_, size), share in kinds.items())
    for command, of_command in OPENIM_COMMANDS.items():
        its = Source("openim", "", command, OpenIMProvider.commands[command].value, "")
        kinds[its, 1] = of_command * removals * (1 - TENCENT_SHARE) / TENCENT_SHARE
    return kinds


KINDS = _kinds()


def _source_ids(connection: Connection) -> dict[Source, int]:
    """Those of all sources that removals are given; what is not there is added."""

    def read() -> dict[Source, int]:
        columns = (source.c[name] for name in Source._fields)
        rows = connection.execute(select(source.c.id, *columns).order_by(source.c.id.desc()))
        return {Source(*key): int(source_id) for source_id, *key in rows}

    missing = dict.fromkeys(its for its, _ in KINDS).keys() - read().keys()
    if missing:
        connection.execute(source.insert(), [its._asdict() for its in sorted(missing)])
    ids = read()
    connection.commit()
    return ids


class Accounts:
    """Numbers of accounts by Zipf's law: the second busiest is drawn half as often as the first.

    `ranking` decides which numbers are the busy ones, `chance` draws.
    """

    def __init__(self, count: int, ranking: random.Random, chance: random.Random) -> None:
        self._count = count
        self._exponent = math.log(count + 1)
        self._random = chance.random
        # Such a step leads from rank to rank and meets each number once.
        self._offset, self._step = ranking.randrange(count), 0
        while math.gcd(self._step, count) != 1:
            self._step = ranking.randrange(count)

    def draw(self) -> int:
        rank = int(math.exp(self._random() * self._exponent))
        return (self._offset + rank * self._step) % self._count


class Rows(NamedTuple):
    deliveries: list[Row]
    removals: list[Row]


class Callbacks:
    """Makes deliveries and their removals."""

    def __init__(
        self, source_ids: dict[Source, int], accounts: int, seed: int, start: datetime
    ) -> None:
        self._source_ids = source_ids
        ranking = random.Random(seed)  # the busy accounts are the same in every filling
        self._chance = chance = random.Random(f"{seed} {id_at(start)}")
        self._owners = Accounts(accounts, ranking, chance)
        self._targets = Accounts(accounts, ranking, chance)

    def chunks(self, removals: int, start: datetime, until: datetime) -> Iterator[Rows]:
        """So many removals in the order of their ids, about `CHUNK` at a time."""
        random_number = self._chance.random
        kinds, shares = list(KINDS), list(accumulate(KINDS.values()))
        make = {"tencent": self._tencent, "openim": self._openim}
        rows = Rows([], [])
        planned = free_id = 0
        for first, end, total in _hours(removals, start, until):
            drawn = []
            for its, size in self._chance.choices(
                kinds, cum_weights=shares, k=max(total - planned, 0)
            ):
                if planned >= total:
                    break
                drawn.append((its, min(size, removals - planned)))
                planned += size
            moments = sorted(first + int(random_number() * (end - first)) for _ in drawn)
            for moment, (its, size) in zip(moments, drawn, strict=True):
                delivery_id = max(moment, free_id)
                free_id = delivery_id + size
                make[its.provider](rows, delivery_id, its, size)
                if len(rows.removals) >= CHUNK:
                    yield rows
                    rows = Rows([], [])
        yield rows

    def _tencent(self, rows: Rows, delivery_id: int, its: Source, size: int) -> None:
        owner = self._owners.draw()
        pairs = [(f"user{owner}", f"user{target}") for target in self._others(owner, size)]
        if size == 2 and its.relation == "friend":
            pairs[1] = pairs[0][::-1]  # from both lists
        items = [f'{{"From_Account":"{of}","To_Account":"{to}"}}' for of, to in pairs]
        packet = f'{{"CallbackCommand":"{its.command}","PairList":[{",".join(items)}]}}'
        client_ip = SERVER if its.platform == "RESTAPI" else self._address(owner)
        query = (
            f"SdkAppid={its.app_id}&CallbackCommand={its.command}&contenttype=json"
            f"&ClientIP={client_ip.replace(':', '%3A')}&OptPlatform={its.platform}"
        )
        request_id, fingerprint = "", None
        if self._chance.random() >= WITHOUT_REQUEST_ID:
            digits = f"{self._chance.getrandbits(128):032x}"
            request_id = (
                f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
            )
            query += f"&RequestId={request_id}"
            parts = f'["tencent", "{its.app_id}", "{its.command}", "{request_id}"]'
            fingerprint = hashlib.sha256(f"{parts}\n{packet}".encode()).digest()
        headers = (
            '{"host": "im.example.com", "content-type": "application/json", '
            f'"content-length": "{len(packet)}"}}'
        )
        self._add(
            rows,
            delivery_id,
            its,
            pairs,
            authenticated_by="signature",
            client_ip=client_ip,
            request_id=request_id,
            query=query,
            headers=headers,
            body=packet.encode(),
            fingerprint=fingerprint,
        )

    def _openim(self, rows: Rows, delivery_id: int, its: Source, size: int) -> None:
        owner = self._owners.draw()
        (target,) = self._others(owner, size)
        pair = (_openim_name(owner), _openim_name(target))
        of, to = account_members(its.command)
        packet = f'{{"callbackCommand":"{its.command}","{of}":"{pair[0]}","{to}":"{pair[1]}"}}\n'
        # Nanoseconds, as the clients make it.
        operation_id = str(delivery_id * 1000 - self._chance.getrandbits(32))
        headers = (
            '{"host": "im.example.com", "user-agent": "Go-http-client/1.1", '
            '"content-type": "application/json; charset=utf-8", '
            f'"content-length": "{len(packet)}", "operationid": "{operation_id}"}}'
        )
        self._add(
            rows,
            delivery_id,
            its,
            [pair],
            authenticated_by="secret",
            client_ip="",
            request_id=operation_id,
            query="",
            headers=headers,
            body=packet.encode(),
            fingerprint=None,
        )

    def _add(
        self,
        rows: Rows,
        delivery_id: int,
        its: Source,
        pairs: list[tuple[str, str]],
        *,
        authenticated_by: str,
        client_ip: str,
        request_id: str,
        query: str,
        headers: str,
        body: bytes,
        fingerprint: bytes | None,
    ) -> None:
        source_id = self._source_ids[its]
        rows.removals.extend(
            [
                (delivery_id + position, delivery_id, source_id, *pair, client_ip, request_id)
                for position, pair in enumerate(pairs)
            ]
        )
        rows.deliveries.append(
            (
                delivery_id,
                # As it is in SQLite; the others read that too.
                moment_of(delivery_id).isoformat(" ", "microseconds")[:26],
                its.provider,
                its.app_id,
                its.command,
                "recorded",
                None,
                "",
                len(pairs),
                "192.0.2.1",
                authenticated_by,
                client_ip,
                its.platform,
                request_id,
                query,
                headers,
                body,
                fingerprint,
                self._chance.randbytes(16),
            )
        )

    def _others(self, owner: int, count: int) -> dict[int, None]:
        """Different ones, in the order in which they were drawn."""
        others: dict[int, None] = {}
        while len(others) < count:
            target = self._targets.draw()
            if target != owner:
                others[target] = None
        return others

    def _address(self, account: int) -> str:
        """Mostly that of the account: its own, in IPv6 for some, or one that it shares."""
        chance = self._chance
        number = account * 2_654_435_761 % 2**32
        if chance.random() < AWAY:
            number = chance.getrandbits(32)
        kind = number % 10
        if kind == 0:
            return f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1"
        if kind <= 2:
            return f"100.64.0.{int(SHARED_ADDRESSES ** (number / 2**32))}"
        return f"10.{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}"


def _openim_name(account: int) -> str:
    return str(1_000_000_000 + account * 2_654_435_761 % 9_000_000_000)


def _hours(removals: int, start: datetime, until: datetime) -> Iterator[tuple[int, int, int]]:
    """The first id of each hour, that behind its last, and the removals up to its end."""
    hours = range(math.ceil((until - start) / HOUR))
    begins = [start.astimezone(ZONE) + number * HOUR for number in hours]
    ends = [*begins[1:], until]
    busy = accumulate(
        HOURS[begin.hour] * WEEKDAYS[begin.weekday()] * ((end - begin) / HOUR)
        for begin, end in zip(begins, ends, strict=True)
    )
    totals = list(busy)
    for begin, end, total in zip(begins, ends, totals, strict=True):
        yield id_at(begin), id_at(end), round(removals * total / totals[-1])


INDEXES = sorted(delivery.indexes | removal.indexes, key=lambda index: str(index.name))
CONSTRAINTS = [one for one in delivery.constraints if isinstance(one, UniqueConstraint)]


class Database:
    """Takes rows quickly: all of them, or none."""

    constraints: Sequence[UniqueConstraint] = ()
    """Those without which an empty database can be filled."""
    mark = "%s"

    def __init__(self, connection: Connection, *, is_empty: bool) -> None:
        self._connection = connection
        self._is_empty = is_empty

    @contextmanager
    def filling(self) -> Iterator[None]:
        """While it lasts, a database that was empty has no indexes but its keys."""
        with self._connection.begin():
            self._prepare()
            if self._is_empty:
                for constraint in self.constraints:
                    self._connection.execute(DropConstraint(constraint))
                for index in INDEXES:
                    index.drop(self._connection, checkfirst=True)
            yield
            if self._is_empty:
                for constraint in self.constraints:
                    self._connection.execute(AddConstraint(constraint))
            for index in INDEXES:
                index.create(self._connection, checkfirst=True)

    def _prepare(self) -> None:
        """Make this connection fast."""
        raise NotImplementedError

    def insert(self, table: Table, names: Sequence[str], rows: list[Row]) -> None:
        marks = ", ".join([self.mark] * len(names))
        sql = f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({marks})"
        if rows:
            self._connection.exec_driver_sql(sql, rows)

    def analyze(self) -> None:
        """Tell the planner what is there now."""


class SQLite(Database):
    mark = "?"

    @contextmanager
    def filling(self) -> Iterator[None]:
        try:
            with super().filling():
                yield
        finally:
            self._connection.exec_driver_sql("PRAGMA journal_mode=WAL")

    def _prepare(self) -> None:
        for setting in ("synchronous=OFF", f"cache_size=-{CACHE_KIB}", "threads=2"):
            self._connection.exec_driver_sql(f"PRAGMA {setting}")
        if self._is_empty:
            # The log would get as long as all rows. Refused while another has the file open.
            with suppress(OperationalError):
                self._connection.exec_driver_sql("PRAGMA journal_mode=MEMORY")
        self._connection.exec_driver_sql("BEGIN IMMEDIATE")


class PostgreSQL(Database):
    constraints = CONSTRAINTS

    def _prepare(self) -> None:
        self._connection.exec_driver_sql("SET maintenance_work_mem = '256MB'")
        self._connection.exec_driver_sql("SET timezone = 'UTC'")

    def insert(self, table: Table, names: Sequence[str], rows: list[Row]) -> None:
        cursor = self._connection.connection.cursor()
        with cursor.copy(f"COPY {table.name} ({', '.join(names)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def analyze(self) -> None:
        engine = self._connection.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"VACUUM ANALYZE {TABLES}")


class MariaDB(Database):
    """Keeps what it has when it is interrupted: it commits whenever an index goes or comes.

    The next filling makes the indexes then.
    """

    def _prepare(self) -> None:
        self._connection.exec_driver_sql("SET unique_checks = 0")

    def insert(self, table: Table, names: Sequence[str], rows: list[Row]) -> None:
        super().insert(table, names, rows)
        self._connection.exec_driver_sql("COMMIT")

    def analyze(self) -> None:
        self._connection.exec_driver_sql(f"ANALYZE TABLE {TABLES}")


TABLES = ", ".join(table.name for table in (source, delivery, removal))
DATABASES = {"sqlite": SQLite, "postgresql": PostgreSQL, "mysql": MariaDB, "mariadb": MariaDB}


def main() -> None:
    given = options()
    try:
        fill(
            make_url(given.url),
            given.removals,
            accounts=given.accounts,
            days=given.days,
            until=given.until,
            seed=given.random_seed,
        )
    except (SeedError, SQLAlchemyError) as error:
        sys.exit(str(error))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def one(name: str, default: Any, kind: Any, text: str) -> None:
        text = f"{text} (default: {default or 'now'})"
        parser.add_argument(name, type=kind, default=default, help=text)

    parser.add_argument("url", metavar="URL", help="of SQLAlchemy, such as sqlite:///im.db")
    parser.add_argument("removals", metavar="N", type=int, help="how many removals to add")
    one("--accounts", ACCOUNTS, int, "how many each provider has")
    one("--days", DAYS, float, "over how many days the removals are spread")
    one("--random-seed", 1, int, "other removals, and other busy accounts")
    one("--until", None, rfc3339, "when the days end, such as 2026-11-01T00:00:00Z")
    return parser.parse_args()


def rfc3339(text: str) -> datetime:
    """A moment; argparse puts the name of this into its message."""
    value = datetime.fromisoformat(text)
    if value.utcoffset() is None:
        raise ValueError
    return value


if __name__ == "__main__":
    main()
