"""The models of a host with plain SQLAlchemy. They do not import the extension."""

from pathlib import Path

from sqlalchemy import Integer, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

(Path(__file__).parent / "instance").mkdir(exist_ok=True)
engine = create_engine(f"sqlite:///{Path(__file__).parent}/instance/host.db")


class Base(DeclarativeBase):
    """The base of all models."""


class Thing(Base):
    """A table of the host."""

    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)


metadata = Base.metadata
