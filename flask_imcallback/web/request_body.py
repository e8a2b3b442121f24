"""The body of a callback. The view can read it even after functions of the host app."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RequestBody(io.BufferedIOBase):
    """An input stream (PEP 3333, `wsgi.input`) that can be read once more from its start.

    A `before_request` function of the host app may read `request.stream`. Then the view would find
    an empty body, and the callback would be lost.
    """

    def __init__(self, stream: Any, maximum: int) -> None:
        self.stream = stream
        """The stream of the server."""
        self._maximum = maximum
        """Bytes. One byte more is remembered, so the view sees that a body is too large."""
        self._memory = bytearray()
        self._replay: io.BytesIO | None = None

    def rewind(self) -> None:
        """Go back to the start. After this call, no bytes are remembered."""
        self._replay = io.BytesIO(self._memory)

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> bytes:
        if self._replay is None:
            return self._remember(self._read_stream(size))
        if size is None or size < 0:
            return self._replay.read() + self._read_stream(size)
        return self._replay.read(size) or self._read_stream(size)

    def read1(self, size: int = -1) -> bytes:
        return self.read(size)

    def readinto1(self, buffer: WriteableBuffer) -> int:
        return self.readinto(buffer)

    def readline(self, size: int | None = -1) -> bytes:
        if self._replay is not None and (line := self._replay.readline(size)):
            return line
        line = self.stream.readline() if size is None or size < 0 else self.stream.readline(size)
        return self._remember(line)

    def close(self) -> None:
        """Do nothing, so the view can still read the body."""

    def _read_stream(self, size: int | None) -> bytes:
        data: bytes = self.stream.read() if size is None or size < 0 else self.stream.read(size)
        return data

    def _remember(self, data: bytes) -> bytes:
        if self._replay is None:
            self._memory += data[: self._maximum + 1 - len(self._memory)]
        return data
