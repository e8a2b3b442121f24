"""The log of callbacks that neither the database nor the spool has stored.

Each of them is one line of JSON that `flask imcallback replay` reads. Anybody who can make the app
log a text could forge such a line, so the line is signed.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple

from itsdangerous import Signer

from ..logger import logger
from .entries import Entry
from .entry_codec import UnknownVersionError, decode_entry, encode_entry

MARK = "flask_imcallback_lost"
"""The first member of the JSON in a line. Its value is a sentence for people."""

START = re.compile(rf'\{{\\*"{MARK}\\*"')
"""The start of the JSON. Its quotes have backslashes if the line is a text in other JSON."""

MAX_NESTING = 4
"""Maximum number of JSON texts around a line. Docker and each log shipper add one."""

CONTAINER_LINE = re.compile(r"\S+ (stdout|stderr) ([PF])\S* (.*)", re.DOTALL)
"""A line in a log file of Kubernetes: time, stream, partial or full, text."""

FIRST_STEP_MICROSECONDS = 1000


class LostEntry(Entry):
    """An entry from a line of the log. Its ids are the same in each replay."""

    moves = 0
    """How often the id was taken."""

    def choose_step(self, limit: int) -> int:
        """Return the distance to the next id. Each replay of the line chooses the same ids."""
        self.moves += 1
        random = Random(self.row["nonce"] + bytes([self.moves]))  # noqa: S311
        return random.randrange(1, FIRST_STEP_MICROSECONDS << self.moves)


class LostLine(NamedTuple):
    """A line that was found in a log: its entry, or the reason why it cannot be read."""

    number: int
    entry: LostEntry | None
    problem: str = ""


class LostCallbacks:
    """A writer and reader of lines. The last of the keys signs, and each of them verifies.

    Without keys, the lines are not signed.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self._signer = Signer(keys, salt="flask-imcallback-lost") if keys else None

    def write(self, entry: Entry, problem: str) -> None:
        """Log an entry, or print it to stderr if no handler shows the log.

        `fileConfig()` in the env.py of Alembic disables every existing logger, so a host app may
        switch the log off by mistake.
        """
        line = self.encode(entry, problem)
        if is_log_visible():
            logger.error("%s", line)
        else:
            print(line, file=sys.stderr, flush=True)

    def encode(self, entry: Entry, problem: str) -> str:
        """Return the line of an entry. It has only ASCII characters and no line break."""
        content = json.loads(encode_entry(entry))
        body = {"body_base64": content["row"].pop("body")}
        with suppress(UnicodeDecodeError):
            body = {"body": entry.row["body"].decode()}
        line = {
            MARK: f"A callback of {entry.row['provider']} is lost: {problem}. "
            "Repair this, then run flask imcallback replay on this log",
            "received_at": entry.received_at.isoformat(),
            **body,
            "entry": content,
        }
        return json.dumps(line | {"signature": self._sign(line)})

    def _sign(self, line: Mapping[str, Any]) -> str:
        return self._signer.get_signature(_to_sign(line)).decode() if self._signer else ""

    def read(self, lines: Iterable[bytes], *, trusts_all: bool = False) -> Iterator[LostLine]:
        """Yield the lost callbacks in the lines of a log. All other lines are skipped.

        With `trusts_all`, the signatures are not checked.
        """
        for number, text in _join_parts(lines):
            for start in START.finditer(text):
                try:
                    yield LostLine(number, self._decode(text[start.start() :], trusts_all))
                except Exception as error:  # anything may stand in a log
                    yield LostLine(number, None, _describe(error))

    def _decode(self, text: str, trusts_all: bool) -> LostEntry:
        """Return the entry of the JSON at the start of the text.

        Raises `SignatureError`, `UnknownVersionError`, or any error for a line that is damaged.
        """
        decoder = json.JSONDecoder()
        for _ in range(MAX_NESTING):
            if text.startswith(f'{{"{MARK}"'):
                break
            text, _ = decoder.raw_decode(f'"{text}')
        line, _ = decoder.raw_decode(text)
        signature, content = line.pop("signature"), line["entry"]
        signer = None if trusts_all else self._signer
        if signer and not signer.verify_signature(_to_sign(line), signature):
            raise SignatureError
        body = line["body"].encode() if "body" in line else b64decode(line["body_base64"])
        content["row"]["body"] = b64encode(body).decode()
        return LostEntry(*decode_entry(json.dumps(content).encode()))


class SignatureError(ValueError):
    """A line that this app has not signed, or not with its present keys."""

    def __init__(self) -> None:
        super().__init__(
            "its signature is wrong: somebody has forged it, or the SECRET_KEY has changed. Add "
            "the old key to SECRET_KEY_FALLBACKS, or check the line and pass --trust"
        )


def _to_sign(line: Mapping[str, Any]) -> bytes:
    return json.dumps(line, sort_keys=True).encode()


def _describe(error: Exception) -> str:
    """Return the reason why a line cannot be read, without any part of the packet."""
    if isinstance(error, json.JSONDecodeError):
        return "it is cut off or changed"
    if isinstance(error, SignatureError | UnknownVersionError):
        return str(error)
    return f"it is changed ({type(error).__name__})"


def _join_parts(lines: Iterable[bytes]) -> Iterator[tuple[int, str]]:
    """Yield the number of each line and its text.

    Docker and Kubernetes divide a long line into several lines of their log files. These are
    joined again, and get the number of the first one.
    """
    parts: dict[str, tuple[int, str]] = {}
    for number, line in enumerate(lines, start=1):
        text = line.decode(errors="replace")
        stream, part, is_complete = _read_part(text)
        first, before = parts.pop(stream, (number, ""))
        if is_complete:
            yield first, before + part
        else:
            parts[stream] = first, before + part
    yield from parts.values()


def _read_part(line: str) -> tuple[str, str, bool]:
    """Return the stream of a line, its text, and whether the text ends here."""
    if line.startswith('{"log":'):
        try:
            content = json.loads(line)
            log, stream = content["log"], str(content.get("stream"))
            return f"docker {stream}", log, log.endswith("\n")
        except (ValueError, AttributeError):
            return "", line, True
    if match := CONTAINER_LINE.fullmatch(line):
        return f"kubernetes {match[1]}", match[3].rstrip("\n"), match[2] == "F"
    return "", line, True


def is_log_visible() -> bool:
    """Return True if an error of the logger `flask_imcallback` reaches a handler."""
    if logger.logger.disabled or not logger.isEnabledFor(logging.ERROR):
        return False
    if not logger.hasHandlers():
        return logging.lastResort is not None
    return has_handler(logger.logger, logging.ERROR)


def has_handler(logger: logging.Logger, level: int) -> bool:
    """Return True if a handler of the logger, or of the loggers above it, takes this level."""
    source: logging.Logger | None = logger
    while source:
        for handler in source.handlers:
            if handler.level <= level and not isinstance(handler, logging.NullHandler):
                return True
        source = source.parent if source.propagate else None
    return False
