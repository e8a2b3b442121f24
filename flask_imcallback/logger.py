"""The logger of this extension. It never raises, whatever the host app has done to its logging."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import suppress
from typing import Any


class _SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that prints to stderr what the host app fails to log.

    `logging` guards neither a filter nor `emit`. A filter that reads a header of the current
    request raises in our threads, which have no request.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        try:
            # The line and function in the log are those of our caller.
            super().log(level, msg, *args, stacklevel=2, **kwargs)
        except Exception:
            with suppress(Exception):  # stderr may be closed
                print(str(msg) % args if args else msg, file=sys.stderr)
                traceback.print_exc()
                sys.stderr.flush()


logger = _SafeLogger(logging.getLogger("flask_imcallback"), None)
