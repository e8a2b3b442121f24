"""The same in FastAPI: pydantic, SQLAlchemy's ORM, a session for each request."""

# ruff: noqa: N803, N815 (the names are those of the packets)
from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import BaseModel
from sqlalchemy import DateTime, ForeignKey, String, Text, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

engine = create_engine(os.environ["DATABASE_URL"])
app = FastAPI()

if engine.dialect.name == "sqlite":

    @event.listens_for(engine, "connect")
    def set_durable_pragmas(connection, _):
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")


class Base(DeclarativeBase):
    pass


class Callback(Base):
    __tablename__ = "callback"

    id: Mapped[int] = mapped_column(primary_key=True)
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    provider: Mapped[str] = mapped_column(String(32))
    command: Mapped[str] = mapped_column(String(255))
    request_id: Mapped[str] = mapped_column(String(255))
    body: Mapped[str] = mapped_column(Text)


class Removal(Base):
    __tablename__ = "removal"

    id: Mapped[int] = mapped_column(primary_key=True)
    callback_id: Mapped[int] = mapped_column(ForeignKey("callback.id"))
    callback: Mapped[Callback] = relationship()
    received_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    relation: Mapped[str] = mapped_column(String(16))
    owner_id: Mapped[str] = mapped_column(String(255), index=True)
    target_id: Mapped[str] = mapped_column(String(255), index=True)


class OpenImPacket(BaseModel):
    callbackCommand: str
    ownerUserID: str
    blackUserID: str


class Pair(BaseModel):
    From_Account: str
    To_Account: str


class TencentPacket(BaseModel):
    CallbackCommand: str
    PairList: list[Pair]


def get_session() -> Iterator[Session]:
    with Session(engine) as session:
        yield session


async def get_body(request: Request) -> bytes:
    return await request.body()


def check(secret: str) -> None:
    if secret != os.environ["SECRET"]:
        raise HTTPException(403)


Db = Annotated[Session, Depends(get_session)]
Body = Annotated[bytes, Depends(get_body)]


def store(
    session: Session, callback: Callback, relation: str, pairs: list[tuple[str, str]]
) -> None:
    now = callback.received_at
    removals = [
        Removal(callback=callback, received_at=now, relation=relation, owner_id=o, target_id=t)
        for o, t in pairs
    ]
    session.add_all([callback, *removals])
    session.commit()


@app.post("/imcallback/tencent/{secret}", dependencies=[Depends(check)])
def tencent(packet: TencentPacket, db: Db, body: Body, RequestId: str = "") -> dict[str, Any]:
    callback = Callback(
        received_at=datetime.now(UTC),
        provider="tencent",
        command=packet.CallbackCommand,
        request_id=RequestId,
        body=body.decode(),
    )
    store(db, callback, "friend", [(p.From_Account, p.To_Account) for p in packet.PairList])
    return {"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": ""}


@app.post("/imcallback/openim/{secret}/{command}", dependencies=[Depends(check)])
def openim(packet: OpenImPacket, db: Db, body: Body, command: str) -> dict[str, Any]:
    callback = Callback(
        received_at=datetime.now(UTC),
        provider="openim",
        command=command,
        request_id="",
        body=body.decode(),
    )
    store(db, callback, "blacklist", [(packet.ownerUserID, packet.blackUserID)])
    return {"actionCode": 0, "errCode": 0, "errMsg": "", "errDlt": "", "nextCode": 0}


if __name__ == "__main__":
    Base.metadata.create_all(engine)
