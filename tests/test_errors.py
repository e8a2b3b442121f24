"""Errors: every message is complete as `str(error)`."""

from __future__ import annotations

import pytest

from flask_imcallback import errors
from flask_imcallback.errors import HistoryQueryError, StorageError, VerificationError


def test_a_query_error_begins_with_its_parameter() -> None:
    """A Python caller sees which filter is wrong."""
    error = HistoryQueryError("order", "must be asc or desc")
    assert str(error) == "order must be asc or desc"
    assert error.parameter == "order"


def test_a_verification_error_has_its_detail() -> None:
    """Callbacks are counted by the reason. The detail belongs to one request."""
    error = VerificationError("RequestTime is too old", "120 seconds")
    assert (error.reason, error.detail) == ("RequestTime is too old", "120 seconds")
    assert str(error) == "RequestTime is too old: 120 seconds"
    assert str(VerificationError("Sign is wrong")) == "Sign is wrong"


@pytest.mark.parametrize(
    ("error_class", "message"),
    [
        (errors.ImCallbackError, "flask-imcallback failed"),
        (errors.ConfigError, "the configuration of flask-imcallback is wrong"),
        (errors.VerificationError, "the request is not authentic"),
        (errors.PacketError, "the packet cannot be read"),
        (errors.BodyTooLargeError, "the body is larger than IMCALLBACK_MAX_BODY"),
        (
            errors.StorageError,
            "cannot use the database: it is unavailable, or its tables are not at the newest "
            "migration (run flask db upgrade)",
        ),
        (errors.SendError, "the callback could not be sent"),
    ],
)
def test_an_error_without_a_message_has_a_default(
    error_class: type[errors.ImCallbackError], message: str
) -> None:
    """The default does not come from the docstring, which `python -OO` removes."""
    assert str(error_class()) == message
    assert str(error_class("another message")) == "another message"


def test_an_error_keeps_its_builtin_class() -> None:
    """Callers may catch `RuntimeError` and `ValueError`."""
    assert issubclass(StorageError, RuntimeError)
    assert issubclass(HistoryQueryError, ValueError)
