"""MessagePack, as far as app info (spec kms 4.1, extension .9) and envelopes (attestation 1.4) need it."""


def pack(value: object) -> bytes:
    """The shortest form; a tuple of integers stands for the array that some byte fields are."""
    match value:
        case int():
            return _number(value)
        case str():
            return _headed(value.encode(), short=(0xA0, 31), sizes={0xD9: 1, 0xDA: 2})
        case bytes():
            return _headed(value, short=(0, -1), sizes={0xC4: 1, 0xC5: 2, 0xC6: 4})
        case dict():
            items = b"".join(pack(key) + pack(one) for key, one in value.items())
            return bytes([0x80 | len(value)]) + items
        case list() | tuple():
            head = bytes([0x90 | len(value)]) if len(value) < 16 else b"\xdc" + len(value).to_bytes(2, "big")
            return head + b"".join(map(pack, value))
    raise ValueError(f"no {type(value).__name__} here")


def _number(value: int) -> bytes:
    if value < 0x80:
        return bytes([value])
    for head, size in ((0xCC, 1), (0xCD, 2), (0xCE, 4)):
        if value < 1 << 8 * size:
            return bytes([head]) + value.to_bytes(size, "big")
    raise ValueError(f"{value} is too large")


def _headed(content: bytes, *, short: tuple[int, int], sizes: dict[int, int]) -> bytes:
    head, limit = short
    if len(content) <= limit:
        return bytes([head | len(content)]) + content
    for head, size in sizes.items():
        if len(content) < 1 << 8 * size:
            return bytes([head]) + len(content).to_bytes(size, "big") + content
    raise ValueError("too long")


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
