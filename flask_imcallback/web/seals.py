"""The checkpoint and the evidence over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

from flask import Blueprint, Response, request, stream_with_context

from ..log import ActKind, count_deliveries
from ..runtime import get_runtime
from .access import View, add_reader_views
from .api import log_failures, refuse_parameters
from .problems import answer_with_problems
from .reading import begin_file, file_acts


def make_blueprint(decorators: Sequence[Callable[..., Any]]) -> Blueprint:
    """Return the blueprint of the seals. The decorators protect its views."""
    blueprint = Blueprint("imcallback_seals", __name__)
    add_reader_views(blueprint, ROUTES, decorators)
    answer_with_problems(blueprint)
    return blueprint


def _checkpoint() -> Response:
    refuse_parameters()
    return Response(get_runtime().sealer.read_checkpoint(), mimetype="text/plain")


def _evidence() -> Response:
    refuse_parameters()
    acts = file_acts(ActKind.EVIDENCE)
    begin_file(acts)
    file = acts.count(get_runtime().read_evidence(), count_deliveries)
    # The first line is made before the response starts, so an error still gets a status.
    lines = chain([next(file, b"")], file)
    body = iter(()) if request.method == "HEAD" else stream_with_context(log_failures(lines))
    response = Response(body, content_type="application/x-ndjson")
    response.headers["Content-Disposition"] = 'attachment; filename="evidence.ndjson"'
    return response


ROUTES: dict[str, tuple[str, View]] = {
    "/checkpoint": ("checkpoint", _checkpoint),
    "/evidence": ("evidence", _evidence),
}
"""URL rule -> its endpoint and its view."""
