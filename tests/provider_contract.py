"""What every provider keeps: inherit it, and put the packets into `tests/packets/<name>`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import pytest
import samples

from flask_imcallback import PacketError, Provider, VerificationError
from flask_imcallback.providers import CallbackRequest
from flask_imcallback.settings import Settings


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
        if "sample" in metafunc.fixturenames:
            metafunc.parametrize("sample", self.all_samples, ids=str)

    def test_it_lets_in_whom_the_settings_name(self, sample: samples.Sample) -> None:
        """`verify` says how a request was authenticated, or raises."""
        if sample.http_status == 403:
            with pytest.raises(VerificationError):
                self.provider(sample).verify(request_of(sample))
        else:
            assert self.provider(sample).verify(request_of(sample))

    def test_it_reads_the_packet(self, sample: samples.Sample) -> None:
        """`parse` gives the removals in the packet's order, or raises."""
        if sample.http_status in (403, 413):
            pytest.skip("not read")
        provider, request = self.provider(sample), request_of(sample)
        if sample.http_status == 400:
            with pytest.raises(PacketError):
                provider.parse(request, sample.body)
            return
        removals = provider.parse(request, sample.body).removals
        ignored = sample.deliveries[0]["status"] == "ignored"
        assert (removals is None) == ignored
        once = len(sample.removals) if sample.send_times == 1 and not sample.body_before else None
        assert len(removals or ()) == (once if once is not None else len(removals or ()))

    def test_its_refusal_is_in_its_own_words(self) -> None:
        """Every refusal has the same members, whatever the status."""
        provider = self.provider(self.all_samples[0])
        for status in (400, 403, 404, 405, 413, 503):
            reply = provider.refuse(status, "a problem")
            assert reply.status == status
            assert set(reply.body) == set(provider.refuse(500, "another").body)
