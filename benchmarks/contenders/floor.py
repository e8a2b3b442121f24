"""Reads the packet and answers, but stores nothing: what Flask under gunicorn costs by itself."""

from __future__ import annotations

import json

from flask import Flask, Response, request

TENCENT = {"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": ""}
OPENIM = {"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0}

app = Flask(__name__)


@app.post("/imcallback/tencent/<secret>")
def tencent(secret: str) -> Response:
    json.loads(request.get_data())
    return Response(json.dumps(TENCENT), mimetype="application/json")


@app.post("/imcallback/openim/<secret>/<command>")
def openim(secret: str, command: str) -> Response:
    json.loads(request.get_data())
    return Response(json.dumps(OPENIM), mimetype="application/json")
