"""Settings for gunicorn: `gunicorn -c python:flask_imcallback.gunicorn app:app`."""

import gc
import logging
import signal
from typing import Any

bind = "127.0.0.1:8000"
workers = 2
worker_class = "gthread"
# Threads are cheap here, because most of them wait for the same commit.
threads = 16
# OpenIM loses an event that it sends while the server closes an idle connection. Connections must
# stay open longer than the gaps between events. The default of 2 seconds lost events.
keepalive = 75
# The settings are read once, so that a wrong setting stops the start instead of every worker.
preload_app = True
# An access log would get a line for each callback. The extension hides the secrets in its paths.
accesslog = None
# The control socket of gunicorn 25 and later would create a folder in the home of the user.
control_socket_disable = True


def post_worker_init(worker: Any) -> None:
    """Prepare a worker for Ctrl-C, and write the log of the extension like gunicorn's own log.

    If the app configures logging, its configuration applies.
    """
    # Ctrl-C reaches all processes, and the master then stops its workers by SIGQUIT. The handler of
    # gunicorn's threads takes a lock that the interrupted code may hold. Then the worker hangs for
    # `graceful_timeout`. The handler of SIGTERM takes no lock.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGQUIT, worker.handle_exit)
    logger = logging.getLogger("flask_imcallback")
    if not logger.hasHandlers():
        logger.handlers.extend(worker.log.error_log.handlers)
        logger.setLevel(logger.level or logging.INFO)
    # A full garbage collection looks at every object of the app, and all requests of the worker
    # wait for it: 60 ms with the example app. What exists now is never garbage.
    gc.collect()
    gc.freeze()
