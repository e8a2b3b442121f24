"""The exemption of our views from extensions that protect the views of the host app."""

from __future__ import annotations

import logging

from flask import Flask

logger = logging.getLogger("flask_imcallback")

MACHINE_BLUEPRINTS = ("imcallback_callbacks", "imcallback_health")
"""The blueprints that machines call. A machine has no form token, and calls often."""


def exempt_views(app: Flask) -> None:
    """Exempt callbacks and the health check from Flask-WTF and Flask-Limiter.

    Flask-WTF's `CSRFProtect` would refuse every callback. The limits of Flask-Limiter count by IP
    address, and all callbacks come from few addresses.
    """
    limiters = app.extensions.get("limiter", ())
    extensions = list(limiters) if isinstance(limiters, set | list | tuple) else [limiters]
    extensions += [app.extensions["csrf"]] if "csrf" in app.extensions else []
    for endpoint, view in app.view_functions.items():
        if endpoint.partition(".")[0] not in MACHINE_BLUEPRINTS:
            continue
        for extension in extensions:
            try:
                extension.exempt(view)
            except Exception:
                logger.warning(
                    "%s may refuse callbacks: exempt app.view_functions[%r] from it",
                    type(extension).__name__,
                    endpoint,
                    exc_info=True,
                )
