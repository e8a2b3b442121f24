"""Checks for settings that are valid but unsafe or incomplete."""

from __future__ import annotations

from collections.abc import Iterator

from flask import Flask

from ..runtime import Runtime
from ..settings import MIN_SECRET_LENGTH, NEW_SECRET
from .findings import Finding, failure, ok, warning


def check_settings(app: Flask, runtime: Runtime) -> Iterator[Finding]:
    """Check the settings of the extension, and the keys of Flask that it uses."""
    yield from _check_providers(runtime)
    yield from _check_secrets(runtime)
    settings = runtime.settings
    if settings.allow_unauthenticated:
        yield warning(
            "IMCALLBACK_ALLOW_UNAUTHENTICATED is on",
            "Anybody can write into the history.",
            "Set a token, a secret path segment or credentials, and remove this setting.",
        )
    if not settings.history_tokens and not runtime.history_decorators:
        yield warning(
            "The history is closed",
            "Nobody can read it over HTTP.",
            "Set IMCALLBACK_HISTORY_TOKENS or pass history_decorators, if somebody should read it.",
        )
    if not app.config.get("SECRET_KEY"):
        yield warning(
            "The app has no SECRET_KEY",
            "A cursor of the history works only in the process that made it, until that process "
            "ends.",
            "Set SECRET_KEY to the same random text on all machines, for example from "
            f"{NEW_SECRET}.",
        )
    yield ok("The settings are well formed")


def _check_providers(runtime: Runtime) -> Iterator[Finding]:
    if runtime.has_enabled_provider:
        return
    keys = [key for provider in runtime.providers.values() for key in provider.settings_keys]
    yield failure(
        "No provider is enabled",
        "Every callback is answered with 404.",
        f"Set {' or '.join(keys) or 'what the providers need'}, and start the app again.",
    )


def _check_secrets(runtime: Runtime) -> Iterator[Finding]:
    settings = runtime.settings
    texts = {
        "IMCALLBACK_TENCENT_APPS": [
            token for tokens in settings.tencent_apps.values() for token in tokens
        ],
        "IMCALLBACK_OPENIM_CREDENTIALS": settings.openim_credentials.values(),
    }
    for key, values in texts.items():
        shortest = min(map(len, values), default=MIN_SECRET_LENGTH)
        if shortest < MIN_SECRET_LENGTH:
            yield warning(
                f"{key} has a token or password of {shortest} characters",
                "Somebody can guess it.",
                f"Use {MIN_SECRET_LENGTH} or more random characters, for example from "
                f"{NEW_SECRET}.",
            )
