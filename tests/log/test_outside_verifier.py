"""An independent implementation accepts our checkpoints and computes the same roots."""

from __future__ import annotations

from pathlib import Path

import pytest

from flask_imcallback.log import SecretKey, verifier
from support.apps import MakeApp
from support.deliveries import store
from support.go import run_go
from support.log import SECRET, run, seal, write_evidence

PROGRAM = Path(__file__).with_name("outside_verifier.go")


@pytest.mark.slow
def test_go_accepts_our_checkpoint_and_refuses_a_forged_one(
    make_app: MakeApp, tmp_path: Path
) -> None:
    """The packages of Go's checksum database verify the signature, each seal and the log."""
    app = make_app(IMCALLBACK_SEAL_KEY=SECRET.text())
    with app.app_context():
        for count in (1, 2, 5, 1, 3):
            for number in range(count):
                store((f"owner{number}", "ta\tr\ng\u00ebt"))
            seal()
    evidence = write_evidence(app, tmp_path / "evidence.ndjson")
    kept, forged, stolen = (tmp_path / name for name in ("kept", "forged", "stolen"))
    kept.write_text(run(app, "checkpoint").output)
    checkpoint = verifier.read_checkpoint(kept.read_text())
    forged.write_text(kept.read_text().replace("\n5\n", "\n4\n"))
    thief = SecretKey.from_seed(SECRET.key.name, b"t" * 32)
    stolen.write_text(checkpoint.sign(thief))

    def verify(note: Path) -> str:
        return run_go(PROGRAM, str(note), str(SECRET.key), str(evidence)).stdout

    assert verify(kept) == "accepted: 5 seals\n"
    assert verify(forged).startswith("refused: invalid signature")
    assert verify(stolen).startswith("refused: note has no verifiable signatures")
    evidence.write_bytes(evidence.read_bytes().replace(b'"recorded"', b'"ignored"', 1))
    assert verify(kept) == "refused: the root of seal 1 differs\n"
