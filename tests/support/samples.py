"""The packets in `tests/packets`: each file holds a callback and the expected result.

`expected.http_status` and `expected.answer` hold for every request of a sample. `removals` and
`deliveries` hold for all requests together, in the order in which they are stored.
"""

from __future__ import annotations

import json
from base64 import b64decode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support import ROOT

PACKETS = ROOT / "tests/packets"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A callback, the settings of the app that receives it, and the expected result."""

    name: str
    provider: str
    method: str
    path: str
    """The path below the URL prefix."""
    query: str
    headers: dict[str, str]
    body: bytes
    body_before: bytes | None
    """The body of a request that is sent first, and is otherwise the same."""
    settings: dict[str, Any]
    now: int | None = None
    """The time of the app's clock in seconds since 1970, where it matters."""
    send_times: int = 1
    http_status: int
    answer: dict[str, Any]
    """The members that must be equal. Tencent's `ErrorInfo` is absent where its text is free."""
    authenticated_by: str = ""
    """The guards that let the callback in."""
    problem: str = ""
    """Why the callback is refused. The error text must begin with this text."""
    removals: list[dict[str, str]]
    """Each has a relation, an owner and a target. An actor and a cause are absent if unknown."""
    deliveries: list[dict[str, str]]
    """Empty if the callback is only counted."""

    def __str__(self) -> str:
        return self.name

    @property
    def bodies(self) -> list[bytes]:
        """Return the body of each request, in the order of sending."""
        before = [] if self.body_before is None else [self.body_before]
        return before + [self.body] * self.send_times


def samples(provider: str) -> list[Sample]:
    """Return the samples of a provider, sorted by name."""
    paths = sorted((PACKETS / provider).glob("*.json"), key=lambda path: path.stem)
    return [_load(provider, path) for path in paths if path.name != "answers.json"]


def answers() -> list[dict[str, Any]]:
    """Return answers with the reaction of each OpenIM version to them."""
    return list(json.loads((PACKETS / "openim" / "answers.json").read_text("utf-8")))


def _load(provider: str, path: Path) -> Sample:
    file = json.loads(path.read_text("utf-8"))
    request, expected, before = file["request"], file["expected"], file.get("body_before")
    if "removal_count" in expected:
        body, expected["removals"] = _many_friends(request["body_generator"])
        assert len(expected["removals"]) == expected.pop("removal_count")
    elif "body_generator" in request:
        body = "".join(text * times for text, times in request["body_generator"]["parts"]).encode()
    else:
        body = b64decode(request.get("body_base64", "")) or request["body"].encode()
    nothing = {"actor_id": "", "cause": ""}
    expected["removals"] = [nothing | removal for removal in expected["removals"]]
    return Sample(
        **{key: file[key] for key in ("name", "settings", "now", "send_times") if key in file},
        **{key: request[key] for key in ("method", "path", "query", "headers")},
        **expected,
        provider=provider,
        body=body,
        body_before=None if before is None else before.encode(),
    )


def _many_friends(generator: dict[str, Any]) -> tuple[bytes, list[dict[str, str]]]:
    """Return a packet that deletes `count` friends from both lists, and its removals."""
    owner, count = generator["owner_id"], generator["count"]
    targets = [generator["target_id"] % number for number in range(count)]
    ids = [pair for target in targets for pair in ((owner, target), (target, owner))]
    pairs = [{"From_Account": a, "To_Account": b} for a, b in ids]
    packet = {"CallbackCommand": generator["CallbackCommand"], "PairList": pairs}
    removals = [{"relation": "friend", "owner_id": a, "target_id": b} for a, b in ids]
    return json.dumps(packet, separators=(",", ":")).encode(), removals
