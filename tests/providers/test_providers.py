"""The providers alone: the contract that each inherits, and what only one of them promises."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest

from flask_imcallback import (
    ConfigError,
    OpenIMProvider,
    PacketError,
    TencentProvider,
    VerificationError,
)
from flask_imcallback.providers import load_object
from flask_imcallback.settings import Settings
from support import samples
from support.provider_contract import ProviderContract, request_of


class TestTencent(ProviderContract):
    provider_class = TencentProvider
    all_samples = samples.samples("tencent")

    def test_an_app_that_nothing_guards_stops_the_start(self) -> None:
        """The error names the key and the remedies."""
        settings = Settings.from_config({"IMCALLBACK_TENCENT_APPS": {"1400000000": []}})
        with pytest.raises(ConfigError, match=r"IMCALLBACK_TENCENT_APPS.*1400000000.*token"):
            TencentProvider(settings)

    def test_one_of_several_apps_cannot_sign_for_another(self) -> None:
        """A token is good for its own app only."""
        sample = next(s for s in self.all_samples if s.name == "sign_exactly_60s")
        apps = {"1400483163": ["another"], "1400000001": ["xxxxyyyy"]}
        sample = replace(sample, settings={"IMCALLBACK_TENCENT_APPS": apps})
        with pytest.raises(VerificationError, match="none of the app's tokens"):
            self.provider(sample).verify(request_of(sample))

    @pytest.mark.parametrize("time", ["", "-1", "1e9", "16698721120000", "１６６９８７２１１２"])
    def test_a_time_that_is_none_is_refused(self, time: str) -> None:
        """Also when it is signed: the text is hashed as it was received."""
        sample = next(s for s in self.all_samples if s.name == "sign_exactly_60s")
        request = request_of(sample)
        sign = hashlib.sha256(f"xxxxyyyy{time}".encode()).hexdigest()
        query = {**request.query, "Sign": (sign,), "RequestTime": (time,)}
        with pytest.raises(VerificationError, match="RequestTime"):
            self.provider(sample).verify(replace(request, query=query))


class TestOpenIM(ProviderContract):
    provider_class = OpenIMProvider
    all_samples = samples.samples("openim")

    def test_every_server_goes_on_after_every_answer(self) -> None:
        """The measured verdicts on the all-zero answer, which all our answers are."""
        zero = next(a for a in samples.answers() if a["name"] == "answer_all_zero")
        assert set(zero["expected"].values()) == {"continue"}
        provider = self.provider(self.all_samples[0])
        assert str(provider.refuse(503, "").body).replace("'", '"').replace(" ", "") == zero["body"]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b'{"a":NaN}', b'{"a":Infinity}', b"\xff{}", b"{}{}", b"[" * 100_000],
)
def test_what_is_no_json_object_is_a_packet_error(body: bytes) -> None:
    """Whatever the bytes, the error is ours."""
    with pytest.raises(PacketError):
        load_object(body)


def test_a_number_of_any_size_is_no_reason_to_lose_a_packet() -> None:
    """Python alone would refuse to read 10,000 digits."""
    assert load_object(b'{"a":' + b"9" * 10_000 + b"}")["a"] == float("inf")
