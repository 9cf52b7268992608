"""MessagePack, as far as the app info of a certificate needs it (spec kms 4.1, extension .9)."""


def unpack(packed: bytes) -> object:
    """The one value of `packed`, nothing after it."""
    value, at = _value(packed, 0)
    if at != len(packed):
        raise ValueError("bytes after the value")
    return value


def _value(packed: bytes, at: int) -> tuple[object, int]:
    head, at = packed[at], at + 1
    if head == 0xC0:
        return None, at
    if 0x90 <= head <= 0x9F:
        return _array(packed, at, head & 0x0F)
    if head == 0xDC:
        return _array(packed, at + 2, int.from_bytes(packed[at : at + 2], "big"))
    if head in {0xC4, 0xC5}:
        width = 1 if head == 0xC4 else 2
        length = int.from_bytes(packed[at : at + width], "big")
        content = packed[at + width : at + width + length]
        if len(content) != length:
            raise ValueError("the input ends early")
        return content, at + width + length
    raise ValueError(f"app info has no value of type {head:#x}")


def _array(packed: bytes, at: int, count: int) -> tuple[list[object], int]:
    items = []
    for _ in range(count):
        item, at = _value(packed, at)
        items.append(item)
    return items, at
