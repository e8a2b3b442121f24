"""The column types that the tables use on each database."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, cast

from sqlalchemy import (
    BigInteger,
    DateTime,
    Dialect,
    Integer,
    LargeBinary,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeEngine


class ExactText(TypeDecorator[str]):
    """A text that is compared byte by byte, including case, accents and trailing spaces."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        length: int = cast(String, self.impl_instance).length or 0
        if dialect.name in ("mysql", "mariadb"):
            # utf8mb4_bin treats "a" and "a " as equal. Each server lacks the other's collation.
            is_mariadb = getattr(dialect, "is_mariadb", False)
            collation = "utf8mb4_nopad_bin" if is_mariadb else "utf8mb4_0900_bin"
            return dialect.type_descriptor(mysql.VARCHAR(length, collation=collation))
        exact = "C" if dialect.name == "postgresql" else None
        return dialect.type_descriptor(String(length, collation=exact))


class UtcDateTime(TypeDecorator[datetime]):
    """An aware time with microseconds, stored in UTC."""

    impl = DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mysql", "mariadb"):
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or dialect.name == "postgresql":
            return value
        return value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is not None:
            return value and value.astimezone(UTC)
        return value.replace(tzinfo=UTC)


# SQLite stores a table in the order of an INTEGER key. Any other key needs a separate index.
Id = BigInteger().with_variant(Integer(), "sqlite")

# The character set of a database may be narrower than Unicode.
LongText = Text().with_variant(mysql.LONGTEXT(charset="utf8mb4"), "mysql", "mariadb")

Bytes = LargeBinary().with_variant(mysql.LONGBLOB(), "mysql", "mariadb")

Digest = LargeBinary(32).with_variant(mysql.BINARY(32), "mysql", "mariadb")

# Half of a SHA-256 is enough: nobody gains by two callbacks with the same fingerprint.
Fingerprint = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")

Nonce = LargeBinary(16).with_variant(mysql.BINARY(16), "mysql", "mariadb")
