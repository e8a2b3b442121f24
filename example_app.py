"""A small app that receives callbacks. `python example_app.py` starts it on port 8000.

Environment variables set its configuration, for example
FLASK_IMCALLBACK_TENCENT_APPS='{"1400000000": ["token"]}'. Without any IMCALLBACK_ setting, the app
runs as a demo: it creates its secrets once, keeps them in the instance folder, and prints a curl
command for each callback. PORT=8123 selects another port.
"""

import json
import os
import secrets
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from flask import Flask

from flask_imcallback import ConfigError, ImCallback, OpenIMProvider, Settings, TencentProvider

app = Flask(__name__)
app.config.from_prefixed_env()
setting_names = {f"IMCALLBACK_{setting.name.upper()}" for setting in fields(Settings)}
is_demo = not setting_names & app.config.keys()
if is_demo:
    demo_file = Path(app.instance_path, "demo.json")
    if not demo_file.exists():
        demo_file.parent.mkdir(parents=True, exist_ok=True)
        names = ("secret", "token", "secret_key")
        new_secrets = {name: secrets.token_urlsafe(16) for name in names}
        demo_file.touch(0o600)  # other users of this machine must not read the secrets
        demo_file.write_text(json.dumps(new_secrets))
    demo = json.loads(demo_file.read_text())
    app.config["IMCALLBACK_TENCENT_APPS"] = {"1400000000": []}
    app.config["IMCALLBACK_SECRETS"] = [demo["secret"]]
    app.config["IMCALLBACK_HISTORY_TOKENS"] = [demo["token"]]
    app.config["SECRET_KEY"] = app.config["SECRET_KEY"] or demo["secret_key"]

try:
    imcallback = ImCallback(app)
except ConfigError as error:
    if __name__ == "__main__":
        sys.exit(f"Error: {error}")
    raise


DEMO_CALLBACKS = {  # what happens: the command, whose list changes, who leaves it
    TencentProvider: {
        "Alice removes Bob and Carol from her blocklist": (
            "Sns.CallbackBlackListDelete",
            "alice",
            ["bob", "carol"],
        ),
        "Alice deletes Bob from her friend list": ("Sns.CallbackFriendDelete", "alice", ["bob"]),
        "Alice stops following Bob": ("Follow.CallbackAfterFollowDelete", "alice", ["bob"]),
        "An administrator removes Bob from the group @TGS#team": (
            "Group.CallbackAfterMemberExit",
            "@TGS#team",
            ["bob"],
        ),
        "The group @TGS#team of Alice and Carol is dismissed": (
            "Group.CallbackAfterGroupDestroyed",
            "@TGS#team",
            ["alice", "carol"],
        ),
    },
    OpenIMProvider: {
        "Dave removes Erin from his blocklist": (
            "callbackAfterRemoveBlackCommand",
            "dave",
            ["erin"],
        ),
        "Dave deletes Erin from his friend list": (
            "callbackAfterDeleteFriendCommand",
            "dave",
            ["erin"],
        ),
        "Erin quits the group team": ("callbackAfterQuitGroupCommand", "team", ["erin"]),
        "Somebody removes Frank from the group team": (
            "callbackAfterKickGroupCommand",
            "team",
            ["frank"],
        ),
        "The group team of Dave and Grace is dismissed": (
            "callbackAfterDisMissGroupCommand",
            "team",
            ["dave", "grace"],
        ),
    },
}


def print_demo(address: str) -> None:
    """Print what the demo has created, and what to try."""
    token = demo["token"]
    print(f"""
The demo keeps these files in {app.root_path}
  instance/imcallback.db        the database (SQLite)
  instance/imcallback_spool.db  callbacks that wait while the database is unavailable
  instance/demo.json            the secrets of the demo
The installed packages are in {sys.prefix}
Ctrl-C stops the demo. The next start keeps the data. To begin again, delete the folder instance.

Send callbacks from a second terminal, as an IM server does.
HTTP 200 means that the removal is stored. Any other status means that the callback is refused.
""")
    for line in demo_lines(f"http://{address}/imcallback"):
        print(line)
    print(f"""=== See what is recorded ===

Open the history in a browser. If the browser asks, the user is demo and the password is {token}

http://demo:{token}@{address}/imcallback/

List the history as JSON:
{curl(f"http://{address}/imcallback/history")} -H 'Authorization: Bearer {token}'
""")


def demo_lines(url: str) -> Iterator[str]:
    """Yield what each callback reports, and the curl command that sends it."""
    settings = Settings.from_config(app.config)
    for provider, callbacks in DEMO_CALLBACKS.items():
        yield f"=== Callbacks of {provider.title} ===\n"
        for title, (command, owner_id, target_ids) in callbacks.items():
            (callback,) = provider(settings).sample(command, owner_id, target_ids)
            query = f"?{callback.query}" if callback.query else ""
            body = shlex.quote(callback.body.decode().strip())
            yield f"{title}:\n{curl(url + callback.path + query)} -d {body}\n"


def curl(url: str) -> str:
    """Return the start of a curl command that prints the answer and its HTTP status."""
    # OpenIM gets the same answer for a refused callback. Only the status differs.
    return rf"curl -w '\n%{{stderr}}HTTP %{{http_code}}\n' '{url}'"


def print_commands() -> None:
    """Print how to use the command line of the app in another terminal."""
    path = f"{shlex.quote(str(Path(sys.executable).parent))}:$PATH"
    print(f"""Use the command line in a second terminal. The first line is needed once:
export FLASK_APP={shlex.quote(__file__)} PATH={path}
flask imcallback doctor
flask imcallback history

Press Ctrl-C in this terminal to stop the server. Its log follows.
""")


def main() -> None:
    """Create the tables, say what to try, and serve the app."""
    port = os.environ.get("PORT", "8000")
    try:
        socket.create_server(("127.0.0.1", int(port))).close()
    except (ValueError, OverflowError):
        sys.exit(f"PORT is {port!r}: use a number from 1 to 65535, for example PORT=8123")
    except OSError as error:
        sys.exit(
            f"Port {port} cannot be used ({os.strerror(error.errno or 0)}). Stop the program that "
            "uses the port, or choose another port: PORT=8123 make run"
        )
    # A process of its own closes the database file before the server forks its workers.
    command = [sys.executable, "-m", "flask", "--app", "example_app", "db", "upgrade"]
    upgrade = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if upgrade.returncode:
        sys.exit(upgrade.stderr)
    address = f"127.0.0.1:{port}"
    if is_demo:
        print_demo(address)
    print_commands()
    sys.stdout.flush()
    server = [sys.executable, "-m", "gunicorn", "-c", "python:flask_imcallback.gunicorn"]
    os.execv(sys.executable, [*server, "--bind", address, "example_app:app"])  # noqa: S606


if __name__ == "__main__":
    main()
