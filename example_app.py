"""The smallest app: `python example_app.py` serves it with made-up secrets and says how to call it.

Every setting comes from the environment: FLASK_IMCALLBACK_TENCENT_APPS='{"1400000000": ["token"]}'
and so on. With none at all, the demo's secrets are made up once and kept in the instance folder.
"""

import json
import os
import secrets
import sys
from pathlib import Path

from flask import Flask

from flask_imcallback import ImCallback

APP_ID = "1400000000"

app = Flask(__name__)
app.config.from_prefixed_env()
is_demo = not any(key.startswith("IMCALLBACK_") for key in app.config)
if is_demo:
    kept = Path(app.instance_path, "demo.json")
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        made_up = {"secret": secrets.token_urlsafe(16), "token": secrets.token_urlsafe(16)}
        kept.write_text(json.dumps(made_up))
    demo = json.loads(kept.read_text())
    app.config["IMCALLBACK_TENCENT_APPS"] = {APP_ID: []}
    app.config["IMCALLBACK_SECRETS"] = [demo["secret"]]
    app.config["IMCALLBACK_HISTORY_TOKENS"] = [demo["token"]]

imcallback = ImCallback(app)


def print_commands() -> None:
    """Print a curl for each callback, and one for the history."""
    here, secret = "http://127.0.0.1:8000/imcallback", demo["secret"]
    pairs = [{"From_Account": "id", "To_Account": target} for target in ("id1", "id2", "id3")]
    for command in ("Sns.CallbackBlackListDelete", "Sns.CallbackFriendDelete"):
        query = f"SdkAppid={APP_ID}&CallbackCommand={command}&contenttype=json&OptPlatform=iOS"
        packet = json.dumps({"CallbackCommand": command, "PairList": pairs})
        print(f"curl '{here}/tencent/{secret}?{query}' -d '{packet}'\n")
    for command, target in (
        ("callbackAfterRemoveBlackCommand", "blackUserID"),
        ("callbackAfterDeleteFriendCommand", "friendUserID"),
    ):
        packet = json.dumps(
            {"callbackCommand": command, "ownerUserID": "user123", target: "user456"}
        )
        print(f"curl '{here}/openim/{secret}/{command}' -d '{packet}'\n")
    print(f"curl '{here}/history' -H 'Authorization: Bearer {demo['token']}'\n", flush=True)


if __name__ == "__main__":
    if is_demo:
        print_commands()
    server = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "example_app:app"]
    os.execv(sys.executable, server)  # noqa: S606
