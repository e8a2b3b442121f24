"""Measure the seals of the log on SQLite: sealing, verifying, and bytes on disk.

    python benchmarks/log.py --deliveries 50000

The numbers are CPU time of one process, the best of some runs.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from flask import Flask

from flask_imcallback import ImCallback, upgrade
from flask_imcallback.log import Sealer, SecretKey, verifier
from flask_imcallback.providers import Origin
from flask_imcallback.removals import Relation, Removal
from flask_imcallback.runtime import Runtime, get_runtime
from flask_imcallback.storage import Delivery, Entry, Writer, id_at

RUNS = 4
BATCH_ENTRIES = 2000
START = datetime(2026, 1, 1, tzinfo=UTC)
BODY = (
    b'{"CallbackCommand":"Sns.CallbackFriendDelete","PairList":[{"From_Account":"user123",'
    b'"To_Account":"user456","InitiatorAccount":"user123"}],"ClientCmd":"friend_delete",'
    b'"OptPlatform":"RESTAPI","EventTime":1670574414123}'
)


def store(runtime: Runtime, count: int) -> None:
    """Store deliveries of one removal each, and number them."""
    writer = Writer(runtime.process.get().engines.writing, retry_until_deadline=True)
    for first in range(0, count, BATCH_ENTRIES):
        numbers = range(first, min(first + BATCH_ENTRIES, count))
        writer.write([make_entry(number) for number in numbers], 60)
    runtime.sequencer.catch_up(600)


def make_entry(number: int) -> Entry:
    """Return the entry of a callback of Tencent."""
    received_at = START + number * timedelta(milliseconds=10)
    delivery = Delivery(
        provider="tencent",
        repeats_callbacks=True,
        origin=Origin(
            command="Sns.CallbackFriendDelete",
            app_id="1400000000",
            request_id=f"2ea4e023-{number:012}",
            client_ip="203.0.113.7",
            platform="iOS",
        ),
        received_at=received_at,
        remote_addr="192.0.2.1",
        authenticated_by="signature",
        query="SdkAppid=1400000000&contenttype=json",
        headers={"content-type": "application/json", "user-agent": "Tencent"},
        body=BODY,
        removals=(Removal(Relation.FRIEND, f"user{number % 5003}", f"user{number % 7001}"),),
    )
    return Entry.from_delivery(delivery, id_at(received_at))


def best(count: int, work: Callable[[], object]) -> str:
    """Return how many things the work does in a second."""
    seconds = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return f"{count / min(seconds):,.0f} a second"


def main() -> None:
    """Print one line for each measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deliveries", type=int, default=50_000)
    count: int = parser.parse_args().deliveries
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        app = Flask("benchmark", instance_path=name)
        app.config["IMCALLBACK_SECRETS"] = ["a-secret-of-the-benchmark"]
        app.config["IMCALLBACK_SEAL_SECONDS"] = 0
        ImCallback(app)
        with app.app_context():
            upgrade()
            runtime = get_runtime()
            store(runtime, count)
            measure(runtime, folder, count)


def measure(runtime: Runtime, folder: Path, count: int) -> None:
    """Seal the log, write its evidence and verify it."""
    size_of_seals = measure_sealing(runtime, folder, count)
    for packets in (False, True):
        file = folder / f"evidence{packets}"
        file.write_bytes(b"".join(runtime.read_evidence(with_packets=packets)))
        speed = best(count, lambda file=file: verify(file))  # type: ignore[misc]
        kind = "accounts and packets" if packets else "accounts"
        print(f"verify removals with {kind}: {speed}, {file.stat().st_size / count:.0f} bytes each")
    nameless = folder / "nameless"
    with nameless.open("wb") as output:
        subprocess.run(["cut", "-f1", folder / "evidenceFalse"], stdout=output, check=True)
    size = nameless.stat().st_size / count
    speed = best(count, lambda: verify(nameless))
    print(f"verify leaves without names: {speed}, {size:.0f} bytes each")
    speed = best(count, lambda: runtime.verify_database([]))
    print(f"verify the database: {speed}")
    print(f"log, seals and inbox on disk: {size_of_seals / count:.1f} bytes a delivery")


def measure_sealing(runtime: Runtime, folder: Path, count: int) -> int:
    """Seal the whole log. Return the size of the tables of the log and the seals."""
    engine = runtime.process.get().engines.occasional
    start = time.process_time()
    Sealer(engine, folder, SecretKey.from_seed("example.com/log", bytes(32)), 0).seal()
    print(f"seal: {count / (time.process_time() - start):,.0f} deliveries a second (one run)")
    with engine().connect() as connection:
        rows = connection.exec_driver_sql(
            "SELECT sum(pgsize) FROM dbstat WHERE name IN ('imcallback_log', 'imcallback_seal', "
            "'uq_imcallback_log_entry_id', 'imcallback_inbox')"
        )
        return int(rows.scalar_one())


def verify(file: Path) -> None:
    """Verify evidence, which must hold."""
    assert not verifier.verify_file(str(file)).problems


if __name__ == "__main__":
    main()
