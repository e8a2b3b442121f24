"""What one writes by hand in an afternoon: Flask, Flask-SQLAlchemy's ORM, marshmallow."""

# ruff: noqa: N815 (the names are those of the packets)
from __future__ import annotations

import os
from datetime import UTC, datetime

from flask import Flask, Response, abort, jsonify, request
from flask_sqlalchemy import SQLAlchemy
from marshmallow import EXCLUDE, Schema, ValidationError, fields
from sqlalchemy import ForeignKey, String, Text, event
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

app = Flask(__name__)
app.config["SQLALCHEMY_DATABASE_URI"] = os.environ["DATABASE_URL"]


class Base(DeclarativeBase):
    pass


db = SQLAlchemy(app, model_class=Base)


class Callback(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    received_at: Mapped[datetime]
    provider: Mapped[str] = mapped_column(String(32))
    command: Mapped[str] = mapped_column(String(255))
    request_id: Mapped[str] = mapped_column(String(255))
    body: Mapped[str] = mapped_column(Text)


class Removal(db.Model):
    id: Mapped[int] = mapped_column(primary_key=True)
    callback_id: Mapped[int] = mapped_column(ForeignKey("callback.id"))
    callback: Mapped[Callback] = relationship()
    received_at: Mapped[datetime]
    relation: Mapped[str] = mapped_column(String(16))
    owner_id: Mapped[str] = mapped_column(String(255), index=True)
    target_id: Mapped[str] = mapped_column(String(255), index=True)


class OpenImSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    callbackCommand = fields.String(required=True)
    ownerUserID = fields.String(required=True)
    blackUserID = fields.String(required=True)


class PairSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    From_Account = fields.String(required=True)
    To_Account = fields.String(required=True)


class TencentSchema(Schema):
    class Meta:
        unknown = EXCLUDE

    CallbackCommand = fields.String(required=True)
    PairList = fields.List(fields.Nested(PairSchema), required=True)


@app.errorhandler(ValidationError)
def invalid(error: ValidationError) -> tuple[Response, int]:
    return jsonify(error.messages), 400


def store(provider: str, command: str, relation: str, pairs: list[tuple[str, str]]) -> None:
    now = datetime.now(UTC).replace(tzinfo=None)
    callback = Callback(
        received_at=now,
        provider=provider,
        command=command,
        request_id=request.args.get("RequestId", ""),
        body=request.get_data(as_text=True),
    )
    removals = [
        Removal(callback=callback, received_at=now, relation=relation, owner_id=o, target_id=t)
        for o, t in pairs
    ]
    db.session.add_all([callback, *removals])
    db.session.commit()


@app.post("/imcallback/tencent/<secret>")
def tencent(secret: str) -> Response:
    if secret != os.environ["SECRET"]:
        abort(403)
    packet = TencentSchema().load(request.get_json(force=True))
    pairs = [(pair["From_Account"], pair["To_Account"]) for pair in packet["PairList"]]
    store("tencent", packet["CallbackCommand"], "friend", pairs)
    return jsonify(ActionStatus="OK", ErrorCode=0, ErrorInfo="")


@app.post("/imcallback/openim/<secret>/<command>")
def openim(secret: str, command: str) -> Response:
    if secret != os.environ["SECRET"]:
        abort(403)
    packet = OpenImSchema().load(request.get_json(force=True))
    store("openim", command, "blacklist", [(packet["ownerUserID"], packet["blackUserID"])])
    return jsonify(actionCode=0, errCode=0, errMsg="", errDlt="", nextCode=0)


with app.app_context():
    if db.engine.dialect.name == "sqlite":

        @event.listens_for(db.engine, "connect")
        def set_durable_pragmas(connection, _):
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")

    if __name__ == "__main__":
        db.create_all()
