"""A small app that receives callbacks. `python example_app.py` starts it on port 8000.

Environment variables set its configuration, for example
FLASK_IMCALLBACK_TENCENT_APPS='{"1400000000": ["token"]}'. Without any IMCALLBACK_ setting, the app
runs as a demo: it creates its secrets once, keeps them in the instance folder, and prints a curl
command for each callback.
"""

import json
import os
import secrets
import sys
from pathlib import Path

from flask import Flask

from flask_imcallback import ConfigError, ImCallback

DEMO_APP_ID = "1400000000"

app = Flask(__name__)
app.config.from_prefixed_env()
is_demo = not any(key.startswith("IMCALLBACK_") for key in app.config)
if is_demo:
    demo_file = Path(app.instance_path, "demo.json")
    if not demo_file.exists():
        demo_file.parent.mkdir(parents=True, exist_ok=True)
        names = ("secret", "token", "secret_key")
        new_secrets = {name: secrets.token_urlsafe(16) for name in names}
        demo_file.touch(0o600)  # other users of this machine must not read the secrets
        demo_file.write_text(json.dumps(new_secrets))
    demo = json.loads(demo_file.read_text())
    app.config["IMCALLBACK_TENCENT_APPS"] = {DEMO_APP_ID: []}
    app.config["IMCALLBACK_SECRETS"] = [demo["secret"]]
    app.config["IMCALLBACK_HISTORY_TOKENS"] = [demo["token"]]

    app.config["SECRET_KEY"] = app.config["SECRET_KEY"] or demo["secret_key"]

try:
    imcallback = ImCallback(app)
except ConfigError as error:
    if __name__ == "__main__":
        sys.exit(f"Error: {error}")
    raise


def print_commands() -> None:
    """Print a curl command for each callback and one for the history."""
    url, secret = "http://127.0.0.1:8000/imcallback", demo["secret"]
    pairs = [{"From_Account": "id", "To_Account": target} for target in ("id1", "id2", "id3")]
    for command in ("Sns.CallbackBlackListDelete", "Sns.CallbackFriendDelete"):
        query = f"SdkAppid={DEMO_APP_ID}&CallbackCommand={command}&contenttype=json&OptPlatform=iOS"
        packet = json.dumps({"CallbackCommand": command, "PairList": pairs})
        print(f"curl '{url}/tencent/{secret}?{query}' -d '{packet}'\n")
    for command, target_key in (
        ("callbackAfterRemoveBlackCommand", "blackUserID"),
        ("callbackAfterDeleteFriendCommand", "friendUserID"),
    ):
        packet = json.dumps(
            {"callbackCommand": command, "ownerUserID": "user123", target_key: "user456"}
        )
        print(f"curl '{url}/openim/{secret}/{command}' -d '{packet}'\n")
    print(f"curl '{url}/history' -H 'Authorization: Bearer {demo['token']}'\n")


def print_environment() -> None:
    """Print the line after which `flask imcallback doctor` and other commands work here."""
    print("Paste this line before commands such as `flask imcallback doctor`:\n")
    print(f"export FLASK_APP=example_app PATH='{Path(sys.executable).parent}':$PATH\n", flush=True)


if __name__ == "__main__":
    if is_demo:
        print_commands()
    print_environment()
    config = "python:flask_imcallback.gunicorn"
    server = [sys.executable, "-m", "gunicorn", "-c", config, "example_app:app"]
    os.execv(sys.executable, server)  # noqa: S606
