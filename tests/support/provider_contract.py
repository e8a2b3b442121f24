"""The contract of every provider: inherit it, and put the packets into `tests/packets/<name>`."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import parse_qsl, unquote

import pytest

from flask_imcallback import PacketError, Provider, Removal, VerificationError
from flask_imcallback.providers import CallbackRequest, OutgoingCallback
from flask_imcallback.settings import Settings
from support import samples


def make_request(
    path: str, query: str, headers: dict[str, str], received_at: datetime
) -> CallbackRequest:
    """Return the request that the web layer makes for this path below the URL prefix."""
    values: dict[str, tuple[str, ...]] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        values[name] = (*values.get(name, ()), value)
    return CallbackRequest(
        segments=tuple(segment for segment in unquote(path).split("/")[2:] if segment),
        query=values,
        headers={name.lower(): value for name, value in headers.items()},
        remote_addr="192.0.2.1",
        received_at=received_at,
    )


def request_of(sample: samples.Sample) -> CallbackRequest:
    """Return the request of a sample, received at the time of the sample."""
    received_at = datetime.fromtimestamp(sample.now or 1_700_000_000, UTC)
    return make_request(sample.path, sample.query, sample.headers, received_at)


def request_of_callback(callback: OutgoingCallback) -> CallbackRequest:
    """Return the request of a callback that is received at once."""
    return make_request(callback.path, callback.query, dict(callback.headers), datetime.now(UTC))


class ProviderContract:
    """Tests of a provider alone, without Flask and without a database."""

    provider_class: ClassVar[type[Any]]
    all_samples: ClassVar[list[samples.Sample]]

    def provider(self, sample: samples.Sample) -> Provider:
        """Make the provider with the settings of a sample."""
        provider: Provider = self.provider_class(Settings.from_config(sample.settings))
        return provider

    def enabled_provider(self) -> Provider:
        """Make a provider that records removals, with the settings of the first such sample."""
        return self.provider(next(sample for sample in self.all_samples if sample.removals))

    def samples_of(self, provider: Provider, *arguments: Any) -> list[OutgoingCallback]:
        """Return the samples that the provider makes, or skip the test if it makes none."""
        return provider.sample(*arguments) or pytest.skip("the provider makes no samples")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        for name, statuses in (
            ("authentic", {200, 400, 413}),
            ("not_authentic", {403}),
            ("readable", {200}),
            ("unreadable", {400}),
        ):
            if name in metafunc.fixturenames:
                chosen = [s for s in self.all_samples if s.http_status in statuses]
                metafunc.parametrize(name, chosen, ids=str)
        if "command" in metafunc.fixturenames:
            metafunc.parametrize("command", self.provider_class.commands)

    def test_verify_lets_in_an_authentic_callback(self, authentic: samples.Sample) -> None:
        """`verify` names the guards that let the callback in."""
        guards = self.provider(authentic).verify(request_of(authentic))
        assert guards == authentic.authenticated_by

    def test_verify_refuses_every_other_callback(self, not_authentic: samples.Sample) -> None:
        """`verify` raises an error with the reason."""
        with pytest.raises(VerificationError) as caught:
            self.provider(not_authentic).verify(request_of(not_authentic))
        assert caught.value.reason == not_authentic.problem

    def test_parse_reads_the_removals(self, readable: samples.Sample) -> None:
        """`parse` returns the removals in the order of the packet, or None for another command."""
        provider = self.provider(readable)
        callback = provider.parse(request_of(readable), readable.body)
        statuses = {delivery["status"] for delivery in readable.deliveries}
        is_recorded = not statuses.isdisjoint({"recorded", "duplicate"})
        assert (callback.removals is not None) == is_recorded
        assert (callback.command in provider.commands) == is_recorded
        pairs = [asdict(removal) for removal in callback.removals or ()]
        assert pairs == readable.removals[len(readable.removals) - len(pairs) :]
        assert bool(pairs) == bool(readable.removals)
        relations = {removal.relation for removal in callback.removals or ()}
        assert relations <= {provider.commands.get(callback.command)}

    def test_keeps_chooses_the_packets_that_are_stored(self, readable: samples.Sample) -> None:
        """`keeps` knows the commands of all stored packets, and no other commands."""
        provider = self.provider(readable)
        command = provider.parse(request_of(readable), readable.body).command
        assert provider.keeps([command]) == bool(readable.deliveries)

    def test_parse_says_what_is_wrong(self, unreadable: samples.Sample) -> None:
        """`parse` raises an error that names the wrong part of the packet."""
        assert unreadable.problem
        with pytest.raises(PacketError, match="^" + re.escape(unreadable.problem)):
            self.provider(unreadable).parse(request_of(unreadable), unreadable.body)

    def test_refuse_answers_with_every_status(self) -> None:
        """Every refusal has the same members and the HTTP status that was asked for."""
        provider = self.provider(self.all_samples[0])
        for status in (400, 403, 404, 405, 413, 503):
            reply = provider.refuse(status, "a problem")
            assert reply.status == status
            assert set(reply.body) == set(provider.refuse(500, "another").body)

    def test_samples_are_authentic_and_record_removals(self, command: str) -> None:
        """`send` works: the provider reads from its own samples the accounts that were given."""
        provider = self.enabled_provider()
        targets = ["bob", "张 三"]
        removals: list[Removal] = []
        for callback in self.samples_of(provider, command, "al/ice", targets):
            request = request_of_callback(callback)
            assert callback.path.startswith(f"/{provider.name}")
            assert provider.verify(request)
            removals += provider.parse(request, callback.body).removals or ()
        relation = provider.commands[command]
        found = [(removal.relation, removal.owner_id, removal.target_id) for removal in removals]
        assert found == [(relation, "al/ice", target) for target in targets]

    def test_the_probe_removes_nobody(self) -> None:
        """`doctor` works: the probe is authentic, holds the mark, and removes nobody."""
        provider = self.enabled_provider()
        (probe,) = self.samples_of(provider, provider.probe_command, "a-mark", ["a-mark"])
        assert b"a-mark" in probe.body
        request = request_of_callback(probe)
        assert provider.verify(request)
        callback = provider.parse(request, probe.body)
        assert (callback.command, callback.removals) == (provider.probe_command, None)
        assert provider.keeps([provider.probe_command])

    def test_the_description_names_every_path_parameter(self) -> None:
        """The OpenAPI document explains each `{parameter}` of the paths."""
        description = self.enabled_provider().describe()
        names = {name for path in description.paths for name in re.findall(r"{(\w+)}", path)}
        assert names == set(description.path_parameters)

    def test_the_setup_steps_show_their_values(self) -> None:
        """Each step has a place for each value, and one of them shows the URL."""
        url = "https://im.example/imcallback/x"
        steps = self.enabled_provider().setup_steps(url)
        for step in steps:
            assert set(re.findall(r"%\((\w+)\)s", step.text)) == set(step.values)
            assert step.text % step.values
        assert any(url in value for step in steps for value in step.values.values())
