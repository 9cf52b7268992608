"""The webhook's request body, read nearly as leniently as by the reference server (contracts section 2.2).

Its schema coerces scalars: null becomes the empty string, numbers and bools become text, a scalar becomes a
list of one, a list of one becomes its element. Hex may have the prefix `0x`, and may be empty: the contract
is then asked about zero. Short hex, which the reference pads, is refused: 31 bytes of a hash are no hash, and
padded they may become one that is listed (upstream issue 1268).
"""

import math
import re
from decimal import Decimal

from shared.boot_info import BootInfo
from shared.errors import ProtocolError

_ADDRESS, _WORD = 20, 32
_HEX_FIELDS = {
    "mrAggregated": _WORD,
    "osImageHash": _WORD,
    "appId": _ADDRESS,
    "composeHash": _WORD,
    "instanceId": _ADDRESS,
    "deviceId": _WORD,
}
INVALID = "authorize.request.invalid"
SHORT_HEX = "authorize.request.short_hex"
MAX_TCB_STATUS = 128
MAX_ADVISORIES = 128
MAX_ADVISORY = 256
_HEX = re.compile(r"(?:0x)?([0-9a-fA-F]*)", re.ASCII)


def parse_boot_info(body: object) -> BootInfo:
    """Return the boot info of a decoded JSON body; hashes have full width, zero where they are empty.

    Raises `ProtocolError`: `authorize.request.short_hex`, `authorize.request.invalid`.
    """
    if not isinstance(body, dict):
        raise _invalid("the body is no object")
    values = {name: _hex(name, body, size) for name, size in _HEX_FIELDS.items()}
    advisories = _list(body.get("advisoryIds", []))
    if len(advisories) > MAX_ADVISORIES:
        raise _invalid(f"advisoryIds has {len(advisories)} items, expected at most {MAX_ADVISORIES}")
    return BootInfo(
        tee_variant=_optional_text(body, "teeVariant"),
        mr_aggregated=values["mrAggregated"],
        os_image_hash=values["osImageHash"],
        mr_system=_hex("mrSystem", {"mrSystem": "", **body}, _WORD),
        app_id=values["appId"],
        compose_hash=values["composeHash"],
        instance_id=values["instanceId"],
        device_id=values["deviceId"],
        key_provider_info=b"",
        tcb_status=_bounded("tcbStatus", _text("tcbStatus", body.get("tcbStatus", "")), MAX_TCB_STATUS),
        advisory_ids=tuple(
            _bounded("advisoryIds", _text("advisoryIds", one), MAX_ADVISORY) for one in advisories
        ),
    )


def _optional_text(body: dict[str, object], name: str) -> str:
    """Read a field that the reference does not know, and so ignores whatever it is."""
    value = body.get(name)
    return value if isinstance(value, str) else ""


def _hex(name: str, body: dict[str, object], size: int) -> bytes:
    if name not in body:
        raise _invalid(f"{name} is missing")
    match = _HEX.fullmatch(_text(name, body[name]))
    if match is None or len(match[1]) > 2 * size:
        raise _invalid(f"{name} is not hex of at most {size} bytes")
    if 0 < len(match[1]) < 2 * size:
        raise ProtocolError(
            SHORT_HEX, f"{name} has {len(match[1])} hex digits, expected {2 * size} or none at all"
        )
    return bytes.fromhex(match[1]) or bytes(size)


def _text(name: str, value: object) -> str:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, str):
        return value
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return _number(name, value)
    raise _invalid(f"{name} is neither text nor a scalar")


def _number(name: str, value: float) -> str:
    """Write a number as JavaScript would: all of them are doubles there, and 5.0 is 5."""
    try:
        double = float(value)
    except OverflowError:
        double = math.inf
    if not math.isfinite(double):
        raise _invalid(f"{name} is a number beyond the range of a double")
    if double.is_integer() and abs(double) < 1e21:
        return str(int(Decimal(repr(double))))
    return repr(double)


def _list(value: object) -> list[object]:
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        raise _invalid("advisoryIds is an object, expected a list")
    return [value]


def _bounded(name: str, text: str, limit: int) -> str:
    if len(text) > limit:
        raise _invalid(f"{name} has {len(text)} characters, expected at most {limit}")
    return text


def _invalid(message: str) -> ProtocolError:
    return ProtocolError(INVALID, message)
