"""The command `follow`: it prints the feed, and continues with new removals."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import click

from ..errors import StorageError
from ..log import FOLLOW_QUERY, Feed, FeedPage, FeedQuery, cloud_events, feed_lines, load_feed_query
from ..runtime import get_runtime
from .acts import log_read
from .output import make_command, query_parameters, report_wrong_options, schema_options

PAUSE_SECONDS = 0.5
"""Pause after a page that ends with the newest removal."""
RETRY_SECONDS = 2.0
"""Pause after an error of the database."""
FORMATS = {"ndjson": feed_lines, "cloudevents": cloud_events}
INTERRUPTED = 130
"""The exit status of a process that Ctrl-C has stopped."""


@report_wrong_options
def _follow(format: str, **parameters: Any) -> None:
    filters = query_parameters(parameters)
    query = load_feed_query(filters)
    try:
        for page in _pages(get_runtime().feed, query):
            log_read("follow", filters, len(page.data))
            for line in FORMATS[format](page.data):
                click.echo(line)
            sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _pages(feed: Feed, query: FeedQuery) -> Iterator[FeedPage]:
    """Yield the pages of the feed without an end. Errors of the database are only printed."""
    problem = ""
    while True:
        try:
            page = feed.read_page(query)
        except StorageError as error:
            if not problem:
                click.echo(f"{error}. Trying again until the database answers.", err=True)
            problem = str(error)
            time.sleep(RETRY_SECONDS)
            continue
        problem = ""
        yield page
        query = replace(query, after=page.last)
        if page.last >= page.head:
            time.sleep(PAUSE_SECONDS)


follow = make_command(
    "follow",
    "Print the removals in the order of the log, and continue with new removals until stopped. "
    "All removals of a delivery have the same log_position. So store a log_position once a line "
    "with a larger one has arrived, and continue later with --after.",
    _follow,
    *schema_options(FOLLOW_QUERY),
    click.Option(
        ["--format"], type=click.Choice(list(FORMATS)), default="ndjson", show_default=True
    ),
)
