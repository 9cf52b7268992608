"""Enclave images: EIF files, their metadata and signatures, cpio archives, and ramdisks of any files."""

import io
import stat
from zlib import crc32

import hypothesis.strategies as st
from cryptography.hazmat.primitives.asymmetric import ec

from shared.measurement.cpio import CpioEntry, read_cpio
from shared.measurement.eif import measure_eif, read_eif
from shared.measurement.eif_metadata import encode_metadata, parse_metadata
from shared.measurement.eif_signature import KeySigner, parse_signature, sign_image, verify_signature
from shared.measurement.enclave_ramdisks import Node, customer_entries, file_node, no_data, write_ramdisk
from tests.fuzz.budget import fuzz, mutated, outcome
from tests.shared.measurement.made_eif import (
    APP,
    BOOT,
    NOT_BEFORE,
    TINY,
    archive,
    image,
    listed,
    raw_archive,
    raw_entry,
    raw_image,
    signing_certificate,
)

PCR0 = bytes(range(48))
KEY = ec.generate_private_key(ec.SECP256R1())
SIGNER = KeySigner(KEY, signing_certificate(KEY))
SIGNED = image(signer=SIGNER)[0]
SECTION = sign_image(SIGNER, PCR0)[0]
METADATA = TINY[764:998]
ARCHIVES = [
    BOOT,
    APP,
    raw_archive(raw_entry(b"d/", mode=stat.S_IFDIR), raw_entry(b"d/l", b"/etc", mode=stat.S_IFLNK)),
]


def resealed(raw: bytes) -> bytes:
    """The file with a checksum that holds."""
    return raw[:544] + crc32(raw[548:], crc32(raw[:544])).to_bytes(4, "big") + raw[548:]


@fuzz(st.binary(max_size=600) | mutated([TINY, SIGNED]))
def test_read_eif(raw: bytes) -> None:
    outcome(read_eif, io.BytesIO(raw))


@fuzz(mutated([TINY, SIGNED]).map(resealed))
def test_measure_eif(raw: bytes) -> None:
    measured = outcome(measure_eif, io.BytesIO(raw))
    if measured is None:
        return
    eif = read_eif(io.BytesIO(raw))
    last = eif.sections[-1]
    assert last.offset + last.size == len(raw)
    if eif.signature is not None:
        outcome(verify_signature, eif.signature, measured.pcr0, at=NOT_BEFORE)


@fuzz(st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=40) | st.just(METADATA)), max_size=34))
def test_any_sections(sections: list[tuple[int, bytes]]) -> None:
    outcome(measure_eif, io.BytesIO(raw_image(sections)))


@fuzz(st.binary(max_size=300) | mutated([METADATA]))
def test_metadata(raw: bytes) -> None:
    metadata = outcome(parse_metadata, raw)
    if metadata is not None:
        encoded = outcome(encode_metadata, metadata)
        assert encoded is None or parse_metadata(encoded) == metadata


@fuzz(st.binary(max_size=300) | mutated([SECTION]))
def test_signature(raw: bytes) -> None:
    signature = outcome(parse_signature, raw)
    if signature is not None:
        assert signature.subject
        outcome(verify_signature, signature, PCR0, at=NOT_BEFORE)


@fuzz(st.binary(max_size=300) | mutated(ARCHIVES))
def test_read_cpio(raw: bytes) -> None:
    entries = outcome(listed, raw)
    if entries is not None:
        assert listed(archive(*entries)) == entries


NAME = st.binary(max_size=3) | st.sampled_from([b"..", b".", b"tmp", b"rootfs", b"TRAILER!!!", b"a" * 256])
PATH = st.lists(NAME, max_size=3).map(b"/".join)


@fuzz(
    st.lists(
        st.tuples(PATH, st.integers(0, 0xFFFF) | st.sampled_from([0o040755, 0o100644, 0o120777])), max_size=8
    ),
)
def test_customer_ramdisk(files: list[tuple[bytes, int]]) -> None:
    def made() -> bytes:
        nodes: list[Node] = [
            (CpioEntry(path, mode), no_data) if stat.S_ISDIR(mode) else file_node(path, b"data", mode=mode)
            for path, mode in files
        ]
        out = bytearray()
        write_ramdisk(customer_entries(nodes, argv=["/a"], env=[]), out.extend)
        return bytes(out)

    raw = outcome(made)
    if raw is not None:
        paths = [entry.path for entry, _ in read_cpio(io.BytesIO(raw))]
        assert paths == sorted(set(paths), key=paths.index)
        assert set(paths) >= {b"rootfs/" + path for path, _ in files}
