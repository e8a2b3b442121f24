"""The protection of our tables against the autogenerate of Alembic in a host app.

The models of a host app do not have our tables, so autogenerate would drop them.
"""

from __future__ import annotations

import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .migrations import VERSION_TABLE
from .tables import metadata

FIRST_ALEMBIC_WITH_PLUGINS = (1, 18)


def setup(plugin: Any) -> None:
    """Register with Alembic 1.18 or newer.

    Alembic calls this function at its import, because this module is an entry point of the group
    `alembic.plugins`. So our tables are safe even if the env.py of the host app does not import
    this package.
    """
    from alembic.util import DispatchPriority

    plugin.add_autogenerate_comparator(
        drop_our_operations, "schema", priority=DispatchPriority.LAST
    )


def protect_tables() -> None:
    """Register with an Alembic without plugins, or with an env.py that includes only some plugins.

    The package calls this function at its import, and for each app. Importing Alembic takes a tenth
    of a second, so the function imports only an Alembic without plugins.
    """
    # An Alembic without a version is being imported, and is about to call `setup`.
    is_loaded = hasattr(sys.modules.get("alembic"), "__version__")
    if is_loaded or _alembic_version() < FIRST_ALEMBIC_WITH_PLUGINS:
        _register()


def _alembic_version() -> tuple[int, ...]:
    try:
        numbers = version("alembic").split(".")
    except PackageNotFoundError:
        return FIRST_ALEMBIC_WITH_PLUGINS
    return tuple(int(number) for number in numbers[:2])


@cache
def _register() -> None:
    from alembic import util
    from alembic.autogenerate import comparators

    # Before 1.18 the comparators run in the order of their registration.
    priority = getattr(util, "DispatchPriority", None)
    options = {"priority": priority.LAST} if priority else {}
    comparators.dispatch_for("schema", **options)(drop_our_operations)


def drop_our_operations(context: Any, operations: Any, _: Any) -> None:
    """Remove the operations on our tables from the operations that Alembic proposes."""
    if context.migration_context.version_table == VERSION_TABLE:
        return
    host_tables = {table.name for table in context.sorted_tables}
    operations.ops[:] = [
        operation
        for operation in operations.ops
        if not is_our_table(getattr(operation, "table_name", None), host_tables)
    ]


def is_our_table(name: str | None, host_tables: set[str]) -> bool:
    """Check whether a table belongs to this extension.

    A table with our prefix may come from a newer release, or from the models of the host app.
    """
    if name in metadata.tables or name == VERSION_TABLE:
        return True
    has_our_prefix = name is not None and name.startswith("imcallback_")
    return has_our_prefix and name not in host_tables
