"""Each provider alone: the shared contract, and the promises of one provider."""

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
from flask_imcallback.providers import agree_on_command, is_one_of, load_object
from flask_imcallback.settings import Settings
from support import samples
from support.provider_contract import ProviderContract, request_of


class TestTencent(ProviderContract):
    provider_class = TencentProvider
    all_samples = samples.samples("tencent")

    def signed_sample(self) -> samples.Sample:
        """Return a callback that is signed with the token "xxxxyyyy"."""
        return next(s for s in self.all_samples if s.name == "sign_exactly_60s")

    def test_an_app_without_a_guard_stops_the_start(self) -> None:
        """The error names the key, the app and the remedies."""
        settings = Settings.from_config({"IMCALLBACK_TENCENT_APPS": {"1400000000": []}})
        with pytest.raises(ConfigError) as caught:
            TencentProvider(settings)
        assert str(caught.value) == (
            "IMCALLBACK_TENCENT_APPS has no token for app 1400000000, so anybody could send "
            "callbacks in its name: add the token of the Tencent console, or add a secret path "
            "segment to IMCALLBACK_SECRETS, or (in development only) set "
            "IMCALLBACK_ALLOW_UNAUTHENTICATED"
        )

    def test_one_app_cannot_sign_for_another(self) -> None:
        """A token is valid for its own app only."""
        apps = {"1400483163": ["another"], "1400000001": ["xxxxyyyy"]}
        sample = replace(self.signed_sample(), settings={"IMCALLBACK_TENCENT_APPS": apps})
        with pytest.raises(VerificationError, match=r"^Sign matches none of the app's tokens$"):
            self.provider(sample).verify(request_of(sample))

    @pytest.mark.parametrize("time", ["", "-1", "1e9", "16698721120000", "１６６９８７２１１２"])
    def test_a_wrong_request_time_is_refused(self, time: str) -> None:
        """It is refused even with a correct signature of the text."""
        sample = self.signed_sample()
        request = request_of(sample)
        sign = hashlib.sha256(f"xxxxyyyy{time}".encode()).hexdigest()
        query = {**request.query, "Sign": (sign,), "RequestTime": (time,)}
        with pytest.raises(VerificationError, match=r"^RequestTime is not a number of seconds$"):
            self.provider(sample).verify(replace(request, query=query))

    @pytest.mark.parametrize("name", ["RequestId", "RequestID", "requestid", "REQUESTID"])
    def test_the_request_id_has_any_spelling(self, name: str) -> None:
        """Tencent sent two spellings, and documents none of them."""
        sample = self.signed_sample()
        request = replace(request_of(sample), query={name: ("an id",)})
        assert self.provider(sample).origin(request).request_id == "an id"
        request = replace(request, query={"RequestId": ("",), name: ("an id",)})
        assert self.provider(sample).origin(request).request_id == "an id"

    def test_a_sample_is_signed_with_the_token_of_its_app(self) -> None:
        """`send --app-id` chooses one of several apps."""
        apps = {"1400483163": ["one"], "1400000001": ["two", "old"]}
        provider = TencentProvider(Settings.from_config({"IMCALLBACK_TENCENT_APPS": apps}))
        (callback,) = provider.sample("X.Y", "alice", ["bob"], app_id="1400000001")
        assert "SdkAppid=1400000001" in callback.query


class TestOpenIM(ProviderContract):
    provider_class = OpenIMProvider
    all_samples = samples.samples("openim")

    def test_every_server_version_continues_after_our_answer(self) -> None:
        """All versions were tested with the all-zero answer, and all answers are this one."""
        zero = next(a for a in samples.answers() if a["name"] == "answer_all_zero")
        assert set(zero["expected"].values()) == {"continue"}
        provider = self.provider(self.all_samples[0])
        assert str(provider.refuse(503, "").body).replace("'", '"').replace(" ", "") == zero["body"]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "the body is not JSON: "),
        (b"[]", "the body is not a JSON object"),
        (b'{"a":NaN}', "the body is not JSON: NaN is not a JSON number"),
        (b'{"a":Infinity}', "the body is not JSON: Infinity is not a JSON number"),
        (b"\xff{}", "the body is not UTF-8"),
        (b"{}{}", "the body is not JSON: Extra data"),
        (b"[" * 100_000, "the body is nested too deeply"),
    ],
)
def test_a_body_without_a_json_object_is_a_packet_error(body: bytes, problem: str) -> None:
    """The error says what is wrong with the bytes."""
    with pytest.raises(PacketError, match=f"^{problem}"):
        load_object(body)


def test_a_number_of_any_size_is_read() -> None:
    """Python alone refuses to read a number of 10,000 digits."""
    assert load_object(b'{"a":' + b"9" * 10_000 + b"}")["a"] == float("inf")


@pytest.mark.parametrize(
    ("candidates", "command"),
    [([], ""), ([None, ""], ""), (["a"], "a"), (["", "a", None, "a"], "a")],
)
def test_path_query_and_body_agree_on_a_command(candidates: list[object], command: str) -> None:
    """A part of the request that names no command does not count."""
    assert agree_on_command(candidates) == command


@pytest.mark.parametrize(
    ("candidates", "problem"),
    [
        (["a", "b"], "the request names different commands: 'a' and 'b'"),
        (["a", "A"], "the request names different commands: 'a' and 'A'"),
        ([1.0], "the command is not a text of at most 255 characters"),
        (["x" * 256], "the command is not a text of at most 255 characters"),
        (["a\0"], "the command is not a text of at most 255 characters"),
    ],
)
def test_a_wrong_command_is_a_packet_error(candidates: list[object], problem: str) -> None:
    """The error says what is wrong with the command."""
    with pytest.raises(PacketError, match=f"^{problem}$"):
        agree_on_command(candidates)


@pytest.mark.parametrize(
    ("text", "is_known"),
    [("one", True), ("two", True), ("", False), ("on", False), ("onE", False), ("\ud800", False)],
)
def test_a_secret_is_compared_as_it_is(text: str, *, is_known: bool) -> None:
    """Any text can be compared, also one that has no UTF-8."""
    assert is_one_of(text, ["one", "two"]) == is_known
