"""Inflating gzip that anybody may have made: in pieces, with the time per byte bounded."""

import zlib
from collections.abc import Iterator

from shared.errors import ProtocolError
from shared.measurement.cpio import Readable

MAX_MEMBERS = 1 << 20
"""Of one stream. Seekable layers have one for each file; an empty one costs as much time as 2 kB of data."""

_WINDOW = 16 + zlib.MAX_WBITS  # gzip's header and checksum, read by zlib
_READ = 64 * 1024
_CHUNK = 1 << 20


def inflated(file: Readable, *, code: str, what: str) -> Iterator[bytes]:
    """Yield what the gzip members of `file` hold, up to its end, in pieces of at most 1 MiB.

    How much may come is the caller's to bound. `what` names the stream in sentences. Raises `ProtocolError`
    with `code`: no gzip, damaged, truncated, bytes after its end, or more than `MAX_MEMBERS` members.
    """
    stream, members = zlib.decompressobj(_WINDOW), 1
    is_between = False
    while data := file.read(_READ):
        while data:
            if is_between:
                stream, is_between, members = zlib.decompressobj(_WINDOW), False, members + 1
                if members > MAX_MEMBERS:
                    raise ProtocolError(code, f"{what} has more than {MAX_MEMBERS} gzip members")
            try:
                piece = stream.decompress(data, _CHUNK)
            except zlib.error as error:
                raise ProtocolError(code, f"{what} is not a whole gzip file: {error}") from error
            if piece:
                yield piece
            is_between = stream.eof
            data = stream.unused_data if is_between else stream.unconsumed_tail
    if not is_between:
        raise ProtocolError(code, f"{what} is not a whole gzip file: it ends early")
