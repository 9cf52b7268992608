import hashlib

import pytest

from shared.measurement.os_image import (
    MAX_NAME,
    MAX_SUMS_BYTES,
    MAX_SUMS_LINES,
    os_image_hash,
    parse_sha256sums,
)
from tests.shared.refusal import refuses

A, B = "aa" * 32, "bb" * 32


def test_names_an_image_by_the_exact_bytes_of_its_list() -> None:
    assert os_image_hash(b"x\r\n") == hashlib.sha256(b"x\r\n").digest()


def test_reads_what_sha256sum_writes() -> None:
    listed = parse_sha256sums(f"{A}  ovmf.fd\n{B.upper()}\tinitramfs.cpio.gz\r\n\n".encode())
    assert list(listed.items()) == [
        ("ovmf.fd", bytes.fromhex(A)),
        ("initramfs.cpio.gz", bytes.fromhex(B)),
    ]


def test_reads_a_last_line_without_its_newline() -> None:
    assert parse_sha256sums(f"{A}  a".encode()) == {"a": bytes.fromhex(A)}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "os_image.sums.empty"),
        ("\n \n", "os_image.sums.empty"),
        (f"{A}\n", "os_image.sums.line"),
        (f"{A}  a b\n", "os_image.sums.line"),
        (f"{A[:-1]}  a\n", "os_image.sums.digest"),
        (f"{A}00  a\n", "os_image.sums.digest"),
        (f"0x{A[2:]}  a\n", "os_image.sums.digest"),
        (f"\\{A}  a\n", "os_image.sums.digest"),
        (f"{A}  a\n{B}  a\n", "os_image.sums.duplicate"),
        (f"{A}  a\n{A}  a\n", "os_image.sums.duplicate"),
        (f"{A}  sha256sum.txt\n", "os_image.sums.self"),
    ],
)
def test_refuses_a_list_that_is_not_one(text: str, code: str) -> None:
    with refuses(code):
        parse_sha256sums(text.encode())


@pytest.mark.parametrize(
    "name", ["a/b", "/a", "..", ".a", "-a", "*a", "a\\b", "a\0", "ä", "\xff", "a" * (MAX_NAME + 1)]
)
def test_n06_refuses_a_name_that_is_not_flat_and_plain(name: str) -> None:
    with refuses("os_image.sums.name"):
        parse_sha256sums(f"{A}  {name}\n".encode())


def test_takes_a_list_of_the_largest_size() -> None:
    line = f"{A}  a\n".encode()
    assert parse_sha256sums(line + b"\n" * (MAX_SUMS_LINES - 1)).keys() == {"a"}
    assert parse_sha256sums(line + b" " * (MAX_SUMS_BYTES - len(line))).keys() == {"a"}


def test_says_which_line_is_wrong() -> None:
    with refuses("os_image.sums.line") as caught:
        parse_sha256sums(f"{A}  a\n{A}\n".encode())
    assert "line 2 " in caught.value.message


@pytest.mark.parametrize("text", [b" " * (MAX_SUMS_BYTES + 1), b"\n" * (MAX_SUMS_LINES + 1)])
def test_refuses_an_oversize_list(text: bytes) -> None:
    with refuses("os_image.sums.size"):
        parse_sha256sums(text)
