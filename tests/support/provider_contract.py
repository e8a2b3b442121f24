"""What every provider keeps: inherit it, and put the packets into `tests/packets/<name>`."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import pytest

from flask_imcallback import PacketError, Provider, VerificationError
from flask_imcallback.providers import CallbackRequest
from flask_imcallback.settings import Settings
from support import samples


def request_of(sample: samples.Sample) -> CallbackRequest:
    query: dict[str, tuple[str, ...]] = {}
    for name, value in parse_qsl(sample.query, keep_blank_values=True):
        query[name] = (*query.get(name, ()), value)
    return CallbackRequest(
        segments=tuple(segment for segment in sample.path.split("/")[2:] if segment),
        query=query,
        headers={name.lower(): value for name, value in sample.headers.items()},
        remote_addr="192.0.2.1",
        received_at=datetime.fromtimestamp(sample.now or 1_700_000_000, UTC),
    )


class ProviderContract:
    """The provider alone, without Flask and without a database."""

    provider_class: ClassVar[type[Any]]
    all_samples: ClassVar[list[samples.Sample]]

    def provider(self, sample: samples.Sample) -> Provider:
        made: Provider = self.provider_class(Settings.from_config(sample.settings))
        return made

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for name, statuses in (
            ("let_in", {200, 400, 413}),
            ("kept_out", {403}),
            ("readable", {200}),
            ("unreadable", {400}),
        ):
            if name in metafunc.fixturenames:
                some = [s for s in self.all_samples if s.http_status in statuses]
                metafunc.parametrize(name, some, ids=str)

    def test_it_lets_in_whom_the_settings_name(self, let_in: samples.Sample) -> None:
        """`verify` says how a request was authenticated."""
        assert self.provider(let_in).verify(request_of(let_in))

    def test_it_keeps_out_everybody_else(self, kept_out: samples.Sample) -> None:
        """`verify` raises."""
        with pytest.raises(VerificationError):
            self.provider(kept_out).verify(request_of(kept_out))

    def test_it_reads_the_packet(self, readable: samples.Sample) -> None:
        """`parse` gives the removals in the packet's order, and None for another command."""
        removals = self.provider(readable).parse(request_of(readable), readable.body).removals
        ignored = readable.deliveries[-1]["status"] == "ignored"
        assert (removals is None) == ignored
        pairs = [asdict(removal) for removal in removals or ()]
        assert pairs == readable.removals[len(readable.removals) - len(pairs) :]
        assert bool(pairs) == bool(readable.removals)

    def test_it_says_what_it_cannot_read(self, unreadable: samples.Sample) -> None:
        """`parse` raises an error with a text."""
        with pytest.raises(PacketError, match=r"."):
            self.provider(unreadable).parse(request_of(unreadable), unreadable.body)

    def test_its_refusal_is_in_its_own_words(self) -> None:
        """Every refusal has the same members, whatever the status."""
        provider = self.provider(self.all_samples[0])
        for status in (400, 403, 404, 405, 413, 503):
            reply = provider.refuse(status, "a problem")
            assert reply.status == status
            assert set(reply.body) == set(provider.refuse(500, "another").body)
