"""The public errors of flask-imcallback."""

from __future__ import annotations

from click import ClickException


class ImCallbackError(Exception):
    """Base class of all errors that flask-imcallback raises on purpose."""

    default_message = "flask-imcallback failed"
    """The message of an error that is raised without one."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self.default_message)


class ConfigError(ImCallbackError, ClickException, RuntimeError):
    """A wrong setting or a wrong use of the extension. The developer of the host app must act.

    Raised when the app starts, or when an object that needs the setting is used for the first time.
    The message names the setting and the remedy. `flask` prints a `ClickException` without a
    traceback, and gunicorn does the same with a `RuntimeError` if it loads the app before it forks.
    """

    default_message = "the configuration of flask-imcallback is wrong"
    exit_code = 2
    """The exit status of a command, as for a wrong option. 1 of `verify` means a changed log."""


class VerificationError(ImCallbackError):
    """A request that is not authentic. A stranger may have sent it.

    If your own IM server sent it, compare its URL and secrets with the settings.

    Raised by `Provider.verify`. The message is logged and never sent to the caller.
    `reason` is one of a few fixed texts, because refused callbacks are counted by reason.
    `detail` describes the single request.
    """

    default_message = "the request is not authentic"

    def __init__(self, reason: str = "", detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason or self.default_message
        self.detail = detail


class PacketError(ImCallbackError, ValueError):
    """A packet that cannot be read as its command. The provider or flask-imcallback must act.

    Raised by `Provider.parse`. The IM server gets the message in its answer.
    """

    default_message = "the packet cannot be read"


class BodyTooLargeError(ImCallbackError):
    """A request body that is larger than `IMCALLBACK_MAX_BODY`. The operator may raise the limit.

    Raised while a callback is read. The IM server gets the message in its answer.
    """

    default_message = "the body is larger than IMCALLBACK_MAX_BODY"


class StorageError(ImCallbackError, RuntimeError):
    """A database or a spool that cannot be used. The operator of the host app must act.

    Raised when the database is unavailable, when its tables are missing or old, or when the spool
    file cannot be read or written.
    """

    default_message = (
        "cannot use the database: it is unavailable, or its tables are not at the newest "
        "migration (run flask db upgrade)"
    )


class HistoryQueryError(ImCallbackError, ValueError):
    """A wrong query parameter. The caller must act.

    Raised by every method of `History` that takes filters. `parameter` is the name of the wrong
    parameter. The message begins with this name.
    """

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(f"{parameter} {message}")
        self.parameter = parameter


class TooWideError(HistoryQueryError):
    """A statistics query with too many counts, or a slow one. The caller must narrow it.

    Raised by `History.stats`.
    """


class SendError(ImCallbackError):
    """A callback that could not be sent, or that got no answer. The operator must act.

    Raised by `flask imcallback send` and `flask imcallback doctor`.
    """

    default_message = "the callback could not be sent"
