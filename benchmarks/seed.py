"""Fill a migrated database with plausible removals, quickly.

The rows start after the newest stored delivery, and end at `--until`. The same options make the
same rows in the same database.
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
    create_engine,
    inspect,
    make_url,
    select,
)
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from flask_imcallback.providers import compact_json
from flask_imcallback.providers.openim import PACKETS
from flask_imcallback.removals import Cause, Relation
from flask_imcallback.storage.entries import FINGERPRINT_BYTES
from flask_imcallback.storage.ids import id_at, moment_of
from flask_imcallback.storage.tables import SourceKey, delivery, removal, source

ACCOUNTS, MIN_ACCOUNTS = 1_000_000, 1000
DAYS = 365.0
MIN_AVERAGE_GAP = timedelta(milliseconds=1)
"""Minimum average time per removal. With less time, ids would exceed `--until`."""
CHUNK_REMOVALS = 10_000
"""Approximate number of removals in one insert. Larger inserts are not faster."""
CACHE_KIB = 256 * 1024

TENCENT_SHARE = 0.6
"""Share of all removals. The shares below are shares of a provider's callbacks."""
APPS = {"1400483163": 0.95, "1400722522": 0.05}
TENCENT_COMMANDS = {
    ("Sns.CallbackFriendDelete", Relation.FRIEND, Cause.NONE): 0.5,
    ("Sns.CallbackBlackListDelete", Relation.BLACKLIST, Cause.NONE): 0.15,
    ("Follow.CallbackAfterFollowDelete", Relation.FOLLOW, Cause.NONE): 0.12,
    ("Group.CallbackAfterMemberExit", Relation.GROUP, Cause.KICKED): 0.07,
    ("Group.CallbackAfterMemberExit", Relation.GROUP, Cause.QUIT): 0.14,
    ("Group.CallbackAfterGroupDestroyed", Relation.GROUP, Cause.DISMISSED): 0.02,
}
OPENIM_COMMANDS = {
    ("callbackAfterDeleteFriendCommand", Relation.FRIEND, Cause.NONE): 0.6,
    ("callbackAfterRemoveBlackCommand", Relation.BLACKLIST, Cause.NONE): 0.15,
    ("callbackAfterQuitGroupCommand", Relation.GROUP, Cause.QUIT): 0.17,
    ("callbackAfterKickGroupCommand", Relation.GROUP, Cause.KICKED): 0.08,
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
LONG_LIST_SIZES = range(3, 21)
PACKET_SIZES = {1: 0.88, 2: 0.09, 500: 0.0004} | dict.fromkeys(
    LONG_LIST_SIZES, 0.0296 / len(LONG_LIST_SIZES)
)
"""Removals in a packet of Tencent. One account quits a group, and a packet of OpenIM has one
removal."""
WITHOUT_REQUEST_ID_SHARE = 0.1
FOREIGN_ADDRESS_SHARE = 0.05
"""Share of the callbacks whose address is not the usual one of the account."""
SHARED_ADDRESS_COUNT = 200
SERVER_ADDRESS = "192.0.2.10"
"""Address from which the app's own server calls Tencent's REST API."""

ZONE = timezone(timedelta(hours=8))
HOUR_WEIGHTS = [5, 3, 2, 1, 1, 1, 2, 4, 6, 8, 9, 10, 12, 11, 9, 9, 9, 10, 12, 14, 16, 17, 15, 10]
WEEKDAY_WEIGHTS = [1.0, 0.95, 0.95, 1.0, 1.1, 1.35, 1.3]
"""Activity in each hour of a day, and on each day from Monday on."""
HOUR = timedelta(hours=1)

Row = tuple[Any, ...]


class SeedError(Exception):
    """The database cannot be filled. The message says what to do."""


def fill(
    url: URL,
    removals: int,
    *,
    accounts: int = ACCOUNTS,
    days: float = DAYS,
    until: datetime | None = None,
    seed: int = 1,
) -> None:
    """Add removals that were received within `days` before `until`.

    `until` is aware, and now by default. Each provider has `accounts` accounts. Raises `SeedError`.
    """
    if accounts < MIN_ACCOUNTS:
        raise SeedError(f"{accounts} accounts are too few: pass at least --accounts {MIN_ACCOUNTS}")
    path = url.database or ""
    if url.get_backend_name() == "sqlite" and not Path(path).exists():
        raise SeedError(f"the database file {path!r} does not exist: run `flask db upgrade`")
    until = until or datetime.now(UTC)
    with create_engine(url, poolclass=NullPool).connect() as connection:
        _check_tables(connection)
        free_id = _free_id(connection)
        start = max(until - timedelta(days=days), moment_of(free_id))
        if until < start + removals * MIN_AVERAGE_GAP:
            raise SeedError(
                f"{removals} removals do not fit between {start} and {until}: pass more --days, or "
                "a later --until"
            )
        callbacks = Callbacks(_source_ids(connection), accounts, seed, free_id)
        database = DATABASES[connection.dialect.name](connection, is_empty=free_id == 0)
        with database.filling():
            with click.progressbar(length=removals, label="Removals", file=sys.stderr) as bar:
                for rows in callbacks.chunks(removals, start, until):
                    database.insert(delivery, rows.deliveries)
                    database.insert(removal, rows.removals)
                    bar.update(len(rows.removals))
            print("Indexes", file=sys.stderr)
        database.analyze()


def _check_tables(connection: Connection) -> None:
    inspector = inspect(connection)
    for table in (source, delivery, removal):
        columns = inspector.get_columns(table.name) if inspector.has_table(table.name) else []
        if {column["name"] for column in columns} != set(table.c.keys()):
            raise SeedError(f"the table {table.name} is missing or old: run `flask db upgrade`")
    connection.commit()


def _free_id(connection: Connection) -> int:
    """Return the first id after all stored removals, or 0 for an empty database."""
    newest = select(delivery.c.id, delivery.c.removal_count).order_by(delivery.c.id.desc())
    row = connection.execute(newest.limit(1)).one_or_none()
    connection.commit()
    return 0 if row is None else int(row.id + max(row.removal_count, 1))


def _kinds() -> dict[tuple[SourceKey, int], float]:
    """Return the frequency of each source with each number of removals in a delivery."""
    kinds = {}
    for app_id, app_share in APPS.items():
        for command, command_share in TENCENT_COMMANDS.items():
            sizes = {1: 1.0} if Cause.QUIT in command else PACKET_SIZES
            for platform, platform_share in PLATFORMS.items():
                source_key = SourceKey("tencent", app_id, *command, platform)
                for size, size_share in sizes.items():
                    kinds[source_key, size] = (
                        app_share * command_share * platform_share * size_share
                    )
    removals = sum(size * share for (_, size), share in kinds.items())
    for command, command_share in OPENIM_COMMANDS.items():
        source_key = SourceKey("openim", "", *command, "")
        kinds[source_key, 1] = command_share * removals * (1 - TENCENT_SHARE) / TENCENT_SHARE
    return kinds


KINDS = _kinds()


def _source_ids(connection: Connection) -> dict[SourceKey, int]:
    """Return the id of each source. Missing sources are added."""

    def read() -> dict[SourceKey, int]:
        columns = (source.c[name] for name in SourceKey._fields)
        rows = connection.execute(select(source.c.id, *columns).order_by(source.c.id.desc()))
        return {SourceKey(*key): int(source_id) for source_id, *key in rows}

    missing = dict.fromkeys(source_key for source_key, _ in KINDS).keys() - read().keys()
    if missing:
        connection.execute(source.insert(), [key._asdict() for key in sorted(missing)])
    ids = read()
    connection.commit()
    return ids


class Accounts:
    """A source of account numbers by Zipf's law: rank 2 is drawn half as often as rank 1.

    `ranking` decides which numbers are busy. `chance` draws the numbers.
    """

    def __init__(self, count: int, ranking: random.Random, chance: random.Random) -> None:
        self._count = count
        self._exponent = math.log(count + 1)
        self._random = chance.random
        # A step without a common divisor leads from rank to rank and meets each number once.
        self._offset, self._step = ranking.randrange(count), 0
        while math.gcd(self._step, count) != 1:
            self._step = ranking.randrange(count)

    def draw(self) -> int:
        rank = int(math.exp(self._random() * self._exponent))
        return (self._offset + rank * self._step) % self._count


class Rows(NamedTuple):
    """Rows of both tables, in the order of their ids."""

    deliveries: list[Row]
    removals: list[Row]


class Callbacks:
    """A generator of deliveries and their removals."""

    def __init__(
        self, source_ids: dict[SourceKey, int], accounts: int, seed: int, free_id: int
    ) -> None:
        self._source_ids = source_ids
        ranking = random.Random(seed)  # the busy accounts are the same in every run
        # An empty database gets the same kinds of callbacks at each time of day.
        self._kinds = random.Random(f"kinds {seed} {free_id}")
        self._chance = chance = random.Random(f"{seed} {free_id}")
        self._owners = Accounts(accounts, ranking, chance)
        self._targets = Accounts(accounts, ranking, chance)

    def chunks(self, removals: int, start: datetime, until: datetime) -> Iterator[Rows]:
        """Yield the rows in the order of their ids, about `CHUNK_REMOVALS` at a time."""
        random_number = self._chance.random
        kinds, shares = list(KINDS), list(accumulate(KINDS.values()))
        make = {"tencent": self._tencent, "openim": self._openim}
        rows = Rows([], [])
        planned = free_id = 0
        for first, end, total in _hours(removals, start, until):
            drawn = []
            while planned < total:
                ((source_key, size),) = self._kinds.choices(kinds, cum_weights=shares)
                drawn.append((source_key, min(size, removals - planned)))
                planned += size
            moments = sorted(first + int(random_number() * (end - first)) for _ in drawn)
            for moment, (source_key, size) in zip(moments, drawn, strict=True):
                delivery_id = max(moment, free_id)
                free_id = delivery_id + size
                make[source_key.provider](rows, delivery_id, source_key, size)
                if len(rows.removals) >= CHUNK_REMOVALS:
                    yield rows
                    rows = Rows([], [])
        yield rows

    def _tencent(self, rows: Rows, delivery_id: int, source_key: SourceKey, size: int) -> None:
        owner = self._owners.draw()
        owner_id = f"@TGS#{owner:X}" if source_key.relation == "group" else f"user{owner}"
        pairs = [(owner_id, f"user{target}") for target in self._others(owner, size)]
        if size == 2 and source_key.relation == "friend":
            pairs[1] = pairs[0][::-1]  # a deletion from both friend lists
        actor_id = {"kicked": f"user{owner}", "quit": pairs[0][1]}.get(source_key.cause, "")
        members = _tencent_members(source_key, pairs, actor_id, delivery_id // 1000)
        packet = f'{{"CallbackCommand":"{source_key.command}",{members}}}'
        client_ip = SERVER_ADDRESS if source_key.platform == "RESTAPI" else self._address(owner)
        request_id, fingerprint = "", None
        if self._chance.random() >= WITHOUT_REQUEST_ID_SHARE:
            digits = f"{self._chance.getrandbits(128):032x}"
            request_id = (
                f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
            )
            parts = f'["tencent", "{source_key.app_id}", "{source_key.command}", "{request_id}"]'
            digest = hashlib.sha256(f"{parts}\n{packet}".encode()).digest()
            fingerprint = digest[:FINGERPRINT_BYTES]
        self._add(
            rows,
            delivery_id,
            source_key,
            pairs,
            actor_id=actor_id,
            authenticated_by="signature",
            client_ip=client_ip,
            request_id=request_id,
            query="contenttype=json",
            headers='{"host":"im.example.com","content-type":"application/json"}',
            body=packet.encode(),
            fingerprint=fingerprint,
        )

    def _openim(self, rows: Rows, delivery_id: int, source_key: SourceKey, size: int) -> None:
        owner = self._owners.draw()
        (target,) = self._others(owner, size)
        is_group = source_key.relation == "group"
        pair = (f"{'g' if is_group else ''}{_openim_name(owner)}", _openim_name(target))
        (members,) = PACKETS[source_key.command].samples(pair[0], [pair[1]])
        packet = compact_json({"callbackCommand": source_key.command, **members}).decode() + "\n"
        # The clients use the time in nanoseconds.
        operation_id = str(delivery_id * 1000 - self._chance.getrandbits(32))
        headers = (
            '{"host":"im.example.com","user-agent":"Go-http-client/1.1",'
            '"content-type":"application/json; charset=utf-8"}'
        )
        self._add(
            rows,
            delivery_id,
            source_key,
            [pair],
            actor_id="",
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
        source_key: SourceKey,
        pairs: list[tuple[str, str]],
        *,
        actor_id: str,
        authenticated_by: str,
        client_ip: str,
        request_id: str,
        query: str,
        headers: str,
        body: bytes,
        fingerprint: bytes | None,
    ) -> None:
        source_id = self._source_ids[source_key]
        rows.removals.extend(
            [
                (delivery_id + position, source_id, position, *pair, actor_id)
                for position, pair in enumerate(pairs)
            ]
        )
        rows.deliveries.append(
            (
                delivery_id,
                None,
                source_id,
                len(pairs),
                "recorded",
                "",
                "",
                "",
                "192.0.2.1",
                authenticated_by,
                client_ip,
                request_id,
                query,
                headers,
                body,
                fingerprint,
                self._chance.randbytes(16),
                None,
            )
        )

    def _others(self, owner: int, count: int) -> dict[int, None]:
        """Return `count` different targets in the order in which they were drawn."""
        others: dict[int, None] = {}
        while len(others) < count:
            target = self._targets.draw()
            if target != owner:
                others[target] = None
        return others

    def _address(self, account: int) -> str:
        """Return an address, usually the one of the account: private, shared, or IPv6."""
        chance = self._chance
        number = account * 2_654_435_761 % 2**32
        if chance.random() < FOREIGN_ADDRESS_SHARE:
            number = chance.getrandbits(32)
        remainder = number % 10
        if remainder == 0:
            return f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1"
        if remainder <= 2:
            return f"100.64.0.{int(SHARED_ADDRESS_COUNT ** (number / 2**32))}"
        return f"10.{number >> 24}.{number >> 16 & 255}.{number >> 8 & 255}"


def _tencent_members(
    source_key: SourceKey, pairs: Sequence[tuple[str, str]], actor_id: str, milliseconds: int
) -> str:
    """Return the members of a packet of Tencent, without its command. `json.dumps` is slower."""
    owner_id = pairs[0][0]
    if source_key.relation == "group":
        members = ",".join(f'{{"Member_Account":"{target_id}"}}' for _, target_id in pairs)
        group = f'"GroupId":"{owner_id}","Type":"Public","EventTime":"{milliseconds}"'
        if source_key.cause == "dismissed":
            return f'{group},"Owner_Account":"{pairs[0][1]}","MemberList":[{members}]'
        exit_type = f'"ExitType":"{source_key.cause.title()}","Operator_Account":"{actor_id}"'
        return f'{group},{exit_type},"ExitMemberList":[{members}]'
    if source_key.relation == "follow":
        targets = ",".join(f'"{target_id}"' for _, target_id in pairs)
        return f'"From_Account":"{owner_id}","To_Account":[{targets}],"EventTime":{milliseconds}'
    items = (
        f'{{"From_Account":"{owner_id}","To_Account":"{target_id}"}}'
        for owner_id, target_id in pairs
    )
    return f'"PairList":[{",".join(items)}]'


def _openim_name(account: int) -> str:
    return str(1_000_000_000 + account * 2_654_435_761 % 9_000_000_000)


def _hours(removals: int, start: datetime, until: datetime) -> Iterator[tuple[int, int, int]]:
    """Yield the first id of each hour, the id after its last, and the removals until its end."""
    hours = range(math.ceil((until - start) / HOUR))
    begins = [start.astimezone(ZONE) + number * HOUR for number in hours]
    ends = [*begins[1:], until]
    busy = accumulate(
        HOUR_WEIGHTS[begin.hour] * WEEKDAY_WEIGHTS[begin.weekday()] * ((end - begin) / HOUR)
        for begin, end in zip(begins, ends, strict=True)
    )
    totals = list(busy)
    for begin, end, total in zip(begins, ends, totals, strict=True):
        yield id_at(begin), id_at(end), round(removals * total / totals[-1])


def _names(table: Table) -> str:
    return ", ".join(table.columns.keys())


INDEXES = sorted(
    # A trigger of SQLite searches for the fingerprint of each new delivery.
    (index for index in delivery.indexes | removal.indexes if not index.unique),
    key=lambda index: str(index.name),
)


class Database:
    """A connection that inserts all rows quickly, or none."""

    placeholder = "%s"

    def __init__(self, connection: Connection, *, is_empty: bool) -> None:
        self._connection = connection
        self._is_empty = is_empty

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Insert within this context. An empty database gets its indexes at the end."""
        with self._connection.begin():
            self._prepare()
            if self._is_empty:
                for index in INDEXES:
                    index.drop(self._connection, checkfirst=True)
            yield
            for index in INDEXES:
                index.create(self._connection, checkfirst=True)

    def _prepare(self) -> None:
        """Make the connection fast."""
        raise NotImplementedError

    def insert(self, table: Table, rows: list[Row]) -> None:
        """Insert rows, whose values are in the order of the columns."""
        placeholders = ", ".join([self.placeholder] * len(table.columns))
        sql = f"INSERT INTO {table.name} ({_names(table)}) VALUES ({placeholders})"
        if rows:
            self._connection.exec_driver_sql(sql, rows)

    def analyze(self) -> None:
        """Update the statistics of the query planner."""


class SQLite(Database):
    placeholder = "?"

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
            # The WAL file would hold all rows. SQLite refuses while another process has the file.
            with suppress(OperationalError):
                self._connection.exec_driver_sql("PRAGMA journal_mode=MEMORY")
        self._connection.exec_driver_sql("BEGIN IMMEDIATE")


class PostgreSQL(Database):
    def _prepare(self) -> None:
        self._connection.exec_driver_sql("SET maintenance_work_mem = '256MB'")
        self._connection.exec_driver_sql("SET timezone = 'UTC'")

    def insert(self, table: Table, rows: list[Row]) -> None:
        cursor = self._connection.connection.cursor()
        with cursor.copy(f"COPY {table.name} ({_names(table)}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)

    def analyze(self) -> None:
        engine = self._connection.engine.execution_options(isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"VACUUM ANALYZE {TABLES}")


class MariaDB(Database):
    """MariaDB, which commits whenever an index is dropped or created.

    An interrupted run keeps its rows, and the next run creates the indexes.
    """

    def _prepare(self) -> None:
        self._connection.exec_driver_sql("SET unique_checks = 0")

    def insert(self, table: Table, rows: list[Row]) -> None:
        super().insert(table, rows)
        self._connection.exec_driver_sql("COMMIT")

    def analyze(self) -> None:
        self._connection.exec_driver_sql(f"ANALYZE TABLE {TABLES}")


TABLES = ", ".join(table.name for table in (source, delivery, removal))
DATABASES = {"sqlite": SQLite, "postgresql": PostgreSQL, "mysql": MariaDB, "mariadb": MariaDB}


def main() -> None:
    arguments = parse_arguments()
    try:
        fill(
            make_url(arguments.url),
            arguments.removals,
            accounts=arguments.accounts,
            days=arguments.days,
            until=arguments.until,
            seed=arguments.random_seed,
        )
    except (SeedError, SQLAlchemyError) as error:
        sys.exit(str(error))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add_option(name: str, default: Any, convert: Any, text: str) -> None:
        text = f"{text} (default: {default or 'now'})"
        parser.add_argument(name, type=convert, default=default, help=text)

    parser.add_argument("url", metavar="URL", help="SQLAlchemy URL, for example sqlite:///im.db")
    parser.add_argument("removals", metavar="N", type=int, help="number of removals to add")
    add_option("--accounts", ACCOUNTS, int, "number of accounts of each provider")
    add_option("--days", DAYS, float, "number of days over which the removals are spread")
    add_option(
        "--random-seed", 1, int, "another number makes other removals and other busy accounts"
    )
    add_option("--until", None, rfc3339, "end of the days, for example 2026-11-01T00:00:00Z")
    return parser.parse_args()


def rfc3339(text: str) -> datetime:
    """Return an aware time. argparse shows the name of this function in its error message."""
    value = datetime.fromisoformat(text)
    if value.utcoffset() is None:
        raise ValueError
    return value


if __name__ == "__main__":
    main()
