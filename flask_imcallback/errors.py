"""Everything raised on purpose. The class says who must act; the docstring is the message."""

from __future__ import annotations


class ImCallbackError(Exception):
    """Base of all errors that flask-imcallback raises on purpose."""

    def __str__(self) -> str:
        return super().__str__() or (type(self).__doc__ or "").strip()


class ConfigError(ImCallbackError, RuntimeError):
    """A setting is wrong: the host must act. The message names the key and the remedy."""


class VerificationError(ImCallbackError):
    """A stranger called: the request is not authentic. The message never leaves this server.

    `reason` is one of a few texts, by which refusals are counted; `detail` is that of the case.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.detail = detail


class PacketError(ImCallbackError, ValueError):
    """A packet cannot be read as its command: the provider or we must act."""


class BodyTooLargeError(ImCallbackError):
    """The body is larger than IMCALLBACK_MAX_BODY."""


class StorageError(ImCallbackError, RuntimeError):
    """The database is away, or its tables are not at the newest migration (flask db upgrade)."""


class HistoryQueryError(ImCallbackError, ValueError):
    """A question to the history is malformed: the caller must act.

    `parameter` is the name of the filter that is wrong.
    """

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter} {message}")
        self.parameter = parameter


class TooWideError(HistoryQueryError):
    """A question is answered by too many counts: the caller must narrow it."""


class SendError(ImCallbackError):
    """A callback could not be sent, or was not answered."""
