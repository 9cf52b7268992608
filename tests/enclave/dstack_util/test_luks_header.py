"""A header that the host may have written is accepted only as this guest's own (spec deploy 6.3 step 10)."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from enclave.dstack_util.luks_header import PAYLOAD_OFFSET, check_luks_header, has_luks_magic
from shared.errors import InvalidEvidence
from tests.enclave.dstack_util.machine import HEADER_SIZE, luks_copy, luks_document, luks_header
from tests.shared.refusal import refuses

CRYPTSETUP = shutil.which("cryptsetup") or shutil.which("cryptsetup", path="/usr/sbin:/sbin")
Change = Callable[[dict[str, Any]], object]


def test_accepts_what_this_guest_writes() -> None:
    header = check_luks_header(luks_header())
    assert (header.size, header.sequence) == (HEADER_SIZE, 3)


def test_tells_a_luks_disk_by_its_first_bytes() -> None:
    assert has_luks_magic(luks_header()[:6])
    assert not has_luks_magic(bytes(6))


@pytest.mark.skipif(CRYPTSETUP is None, reason="cryptsetup is not installed")
def test_accepts_a_header_of_cryptsetups_own(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 << 20)
    options = (
        "--batch-mode --type luks2 --offset 32768 --cipher aes-xts-plain64 --key-size 512 --pbkdf pbkdf2"
    )
    made = subprocess.run(
        [CRYPTSETUP, "luksFormat", *options.split(), "--key-file", "-", str(disk)],
        input=b"passphrase",
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip(f"cryptsetup cannot format a file here: {made.stderr.decode()[:80]}")
    with disk.open("rb") as file:
        assert check_luks_header(file.read(PAYLOAD_OFFSET)).size == HEADER_SIZE


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"magic": b"LUKX\xba\xbe"}, "luks.magic"),
        ({"version": b"\0\x01"}, "luks.version"),
        ({"size": (12345).to_bytes(8)}, "luks.layout"),
        ({"size": (1 << 15).to_bytes(8)}, "luks.checksum"),
        ({"offset": (4096).to_bytes(8)}, "luks.layout"),
        ({"label": b"x"}, "luks.label"),
        ({"subsystem": b"x"}, "luks.label"),
        ({"algorithm": b"sha1\0\0"}, "luks.checksum"),
        ({"padding": b"x"}, "luks.layout"),
        ({"behind": b"x"}, "luks.layout"),
        ({"uuid": b"a\0b"}, "luks.layout"),
    ],
)
def test_refuses_another_binary_header(fields: dict[str, bytes], code: str) -> None:
    with refuses(code):
        check_luks_header(luks_header(**fields))


def test_refuses_a_copy_whose_checksum_is_wrong() -> None:
    raw = bytearray(luks_header())
    raw[5000] ^= 1
    with refuses("luks.checksum"):
        check_luks_header(bytes(raw))


def test_refuses_copies_that_tell_different_things() -> None:
    first, second = json.dumps(luks_document()), json.dumps(luks_document(b"other"))
    copies = luks_copy(first.encode()) + luks_copy(second.encode(), at=HEADER_SIZE)
    with refuses("luks.copies"):
        check_luks_header(copies.ljust(PAYLOAD_OFFSET, b"\0"))


def test_refuses_a_truncated_header() -> None:
    with refuses("luks.size"):
        check_luks_header(luks_header()[:-1])


def _set(value: object, *path: str) -> Change:
    def change(document: dict[str, Any]) -> None:
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = value

    return change


SECOND = {**luks_document()["keyslots"]["0"]}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (_set("cipher_null-ecb", "segments", "0", "encryption"), "luks.metadata"),
        (_set("cipher_null-ecb", "keyslots", "0", "area", "encryption"), "luks.metadata"),
        (_set("linear", "segments", "0", "type"), "luks.metadata"),
        (_set({}, "segments"), "luks.metadata"),
        (_set({}, "segments", "1"), "luks.metadata"),
        (_set(SECOND, "keyslots", "1"), "luks.metadata"),
        (_set({}, "keyslots"), "luks.metadata"),
        (_set({}, "digests"), "luks.metadata"),
        (_set({"type": "luks2-keyring"}, "tokens", "0"), "luks.metadata"),
        (_set(["online-reencrypt"], "config", "requirements"), "luks.metadata"),
        (_set(["allow-discards"], "config", "flags"), "luks.metadata"),
        (_set(["backup-final"], "segments", "0", "flags"), "luks.metadata"),
        (_set({"type": "hmac(sha256)"}, "segments", "0", "integrity"), "luks.metadata"),
        (_set(32, "keyslots", "0", "key_size"), "luks.metadata"),
        (_set(32, "keyslots", "0", "area", "key_size"), "luks.metadata"),
        (_set("reencrypt", "keyslots", "0", "type"), "luks.metadata"),
        (_set("argon2id", "keyslots", "0", "kdf", "type"), "luks.metadata"),
        (_set(1, "keyslots", "0", "kdf", "iterations"), "luks.metadata"),
        (_set("?", "keyslots", "0", "kdf", "salt"), "luks.metadata"),
        (_set("", "digests", "0", "digest"), "luks.metadata"),
        (_set(100, "segments", "0", "sector_size"), "luks.metadata"),
        (_set("1", "segments", "0", "iv_tweak"), "luks.metadata"),
        (_set("4096", "segments", "0", "size"), "luks.metadata"),
        (_set("0", "segments", "0", "offset"), "luks.area"),
        (_set("4096", "keyslots", "0", "area", "offset"), "luks.area"),
        (_set("16777216", "keyslots", "0", "area", "offset"), "luks.area"),
        (_set("16", "keyslots", "0", "area", "size"), "luks.area"),
        (_set("16744449", "keyslots", "0", "area", "size"), "luks.area"),
        (_set("4096", "config", "json_size"), "luks.area"),
        (_set("4096", "config", "keyslots_size"), "luks.area"),
    ],
)
def test_refuses_other_metadata(change: Change, code: str) -> None:
    document = luks_document()
    change(document)
    with refuses(code):
        check_luks_header(luks_header(document))


@pytest.mark.parametrize("text", [b"", b"[", b"{}\0x", b'{"a":1,"a":1}', b"{" * 100])
def test_refuses_what_is_no_json(text: bytes) -> None:
    copies = luks_copy(text) + luks_copy(text, at=HEADER_SIZE)
    with pytest.raises(InvalidEvidence) as refusal:
        check_luks_header(copies.ljust(PAYLOAD_OFFSET, b"\0"))
    assert refusal.value.code in {"luks.json", "luks.metadata"}


@given(at=st.integers(0, 2 * HEADER_SIZE - 1), bit=st.integers(0, 7))
def test_a_flipped_bit_of_either_copy_is_refused(at: int, bit: int) -> None:
    raw = bytearray(luks_header())
    raw[at] ^= 1 << bit
    with pytest.raises(InvalidEvidence):
        check_luks_header(bytes(raw))


@given(
    document=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
        max_leaves=12,
    )
)
def test_no_document_raises_anything_but_a_refusal(document: Any) -> None:
    text = json.dumps(document).encode()
    copies = luks_copy(text) + luks_copy(text, at=HEADER_SIZE)
    with pytest.raises(InvalidEvidence):
        check_luks_header(copies.ljust(PAYLOAD_OFFSET, b"\0"))
