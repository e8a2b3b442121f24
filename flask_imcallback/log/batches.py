"""Batches of rows: they bound the memory of a read, and the length of a transaction."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

BATCH_BYTES = 8 * 1024 * 1024
"""Size of the deliveries that are read at once. A larger delivery is read alone."""
REMOVAL_BYTES = 4096
"""Size that a removal counts for, so that a batch has about 2,000 removals."""


def split_by_weight(items: Iterable[tuple[T, int]], limit: int) -> Iterator[list[T]]:
    """Yield items in lists of at most this total weight. A heavier item is alone.

    Each item comes with its weight.
    """
    batch: list[T] = []
    total = 0
    for item, weight in items:
        if batch and total + weight > limit:
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += weight
    if batch:
        yield batch
