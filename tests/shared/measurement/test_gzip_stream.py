"""Inflating in pieces: members, damage, bombs."""

import gzip
import io
import zlib

import pytest

from shared.errors import ProtocolError
from shared.measurement import gzip_stream
from shared.measurement.gzip_stream import inflated

DATA = b"layer " * 100_000
WHOLE = gzip.compress(DATA, mtime=0)


def inflate(raw: bytes) -> bytes:
    return b"".join(inflated(io.BytesIO(raw), code="g", what="stream"))


def refused(raw: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        inflate(raw)
    return caught.value.code


def test_gives_back_what_was_compressed() -> None:
    assert inflate(WHOLE) == DATA


def test_members_are_joined() -> None:
    raw = b"".join(gzip.compress(DATA[at : at + 1000]) for at in range(0, len(DATA), 1000))
    assert inflate(raw) == DATA


def test_pieces_are_bounded_whatever_the_ratio() -> None:
    raw = io.BytesIO(gzip.compress(bytes(64 << 20)))
    assert max(len(piece) for piece in inflated(raw, code="g", what="stream")) <= 1 << 20


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no gzip at all",
        zlib.compress(DATA),
        WHOLE[:-1],
        WHOLE[:20],
        WHOLE + b"\0",
        WHOLE + b"\x1f",
        WHOLE[:-8] + bytes(8),
    ],
)
def test_what_is_no_whole_gzip_is_refused(raw: bytes) -> None:
    assert refused(raw) == "g"


def test_too_many_members_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gzip_stream, "MAX_MEMBERS", 3)
    assert inflate(gzip.compress(b"") * 3) == b""
    assert refused(gzip.compress(b"") * 4) == "g"
