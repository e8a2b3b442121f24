"""Commands that seal the log and prove what it holds."""

from __future__ import annotations

import os
import sys

import click

from ..errors import ImCallbackError
from ..log import (
    ActKind,
    Checkpoint,
    FileActs,
    NotEvidenceError,
    Report,
    SecretKey,
    count_deliveries,
    user_actor,
    verifier,
)
from ..runtime import get_runtime
from .history import write_file
from .output import make_command


def _seal() -> None:
    """Seal all entries. Print one line for each new seal."""
    for seal in get_runtime().seal_log():
        click.echo(
            f"seal {seal.number}: log positions {seal.first} to {seal.last}, "
            f"{seal.deliveries} deliveries, {seal.removals} removals, {seal.acts} acts"
        )


seal = make_command(
    "seal",
    "Seal the log entries that are not sealed yet. The app does this by itself, unless "
    "IMCALLBACK_SEAL_SECONDS is 0.",
    _seal,
)


def _checkpoint() -> None:
    click.echo(get_runtime().sealer.read_checkpoint(), nl=False)


checkpoint = make_command(
    "checkpoint",
    "Print the newest checkpoint: the number of seals and their root. Keep it on another machine. "
    "flask imcallback verify --checkpoint then proves that no older entry was changed.",
    _checkpoint,
)


def _evidence(file: str, packets: bool) -> None:
    runtime = get_runtime()
    acts = FileActs(runtime.store_act, ActKind.EVIDENCE, user_actor(), {"packets": packets})
    acts.begin()
    lines = acts.count(runtime.read_evidence(with_packets=packets), count_deliveries)
    if file == "-":
        for line in lines:
            click.echo(line, nl=False)
    else:
        write_file(file, lines)


evidence = make_command(
    "evidence",
    "Write everything that is sealed to FILE, or to stdout if FILE is -, so that another machine "
    "can verify it. `cut -f1 FILE` makes evidence that names nobody.",
    _evidence,
    click.Argument(["file"]),
    click.Option(["--packets"], is_flag=True, help="Include the packets of the deliveries."),
)


def _verify(
    file: str | None, checkpoints: tuple[str, ...], key: str | None, newer_than: str | None
) -> None:
    """Print the report. Exit with 1 if something was changed, and with 2 if nothing is known."""

    def check(kept: list[Checkpoint], public: verifier.Key | None) -> Report:
        return verifier.verify_file(file, kept, public) if file else _verify_database(kept, public)

    sys.exit(verifier.run(check, checkpoints=checkpoints, key=key, newer_than=newer_than))


def _verify_database(kept: list[Checkpoint], key: verifier.Key | None) -> Report:
    try:
        return get_runtime().verify_database(kept, key)
    except ImCallbackError as error:
        raise NotEvidenceError(str(error)) from error


verify = make_command(
    "verify",
    "Check that nothing that is sealed was changed, in the database or in the evidence FILE. The "
    "exit status is 0 if all of it holds, 1 if it was tampered with, and 2 if it could not be "
    "checked.",
    _verify,
    click.Argument(["file"], required=False),
    click.Option(
        ["--checkpoint", "checkpoints"],
        multiple=True,
        metavar="FILE",
        help=verifier.CHECKPOINT_HELP,
    ),
    click.Option(["--key"], metavar="VKEY", help=verifier.KEY_HELP),
    click.Option(["--newer-than"], metavar="AGE", help=verifier.NEWER_THAN_HELP),
)


def _new_key(origin: str) -> None:
    """Print the secret key and the public key, one per line."""
    try:
        secret = SecretKey.from_seed(origin, os.urandom(32))
    except NotEvidenceError as error:
        raise click.ClickException(str(error)) from error
    click.echo("Set IMCALLBACK_SEAL_KEY to the secret key:", err=True)
    click.echo(secret.text())
    click.echo("Give the public key to everybody who verifies (--key):", err=True)
    click.echo(secret.key)


new_key = make_command(
    "new-key",
    "Print a new secret key for IMCALLBACK_SEAL_KEY, and its public key. ORIGIN names the log in "
    "its checkpoints, such as example.com/imcallback.",
    _new_key,
    click.Argument(["origin"]),
)
