"""The typed TPM, against both TPMs. Quotes are checked by code that shares nothing with ours."""

import hashlib
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave.devices import tpm_wire as wire
from enclave.devices.gcp_ak import ak_public_key
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_seal import STORAGE_TEMPLATE
from enclave.devices.tpm_wire import Auth, TpmRefused
from enclave.simulator.gcp_vtpm import ECC_TEMPLATE, RSA_TEMPLATE
from shared.errors import ProtocolError

QUALIFYING = bytes(range(32))


def fields(message: bytes) -> tuple[bytes, bytes, bytes]:
    """Return extraData, the selection and pcrDigest of a TPMS_ATTEST."""
    magic, kind, length = struct.unpack_from(">IHH", message)
    assert (magic, kind) == (0xFF544347, 0x8018)
    at = 8 + length
    (length,) = struct.unpack_from(">H", message, at)
    extra = message[at + 2 : at + 2 + length]
    at += 2 + length + 17 + 8
    (count,) = struct.unpack_from(">I", message, at)
    assert count == 1
    chosen = message[at + 4 : at + 10]
    (length,) = struct.unpack_from(">H", message, at + 10)
    assert at + 12 + length == len(message)
    return extra, chosen, message[at + 12 :]


def verify(public: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, message: bytes, signature: bytes) -> None:
    algorithm, digest, length = struct.unpack_from(">HHH", signature)
    assert digest == 0x000B
    if isinstance(public, rsa.RSAPublicKey):
        assert (algorithm, len(signature)) == (0x0014, 6 + length)
        public.verify(signature[6:], message, padding.PKCS1v15(), SHA256())
        return
    assert algorithm == 0x0018
    r = int.from_bytes(signature[6 : 6 + length], "big")
    s = int.from_bytes(signature[8 + length :], "big")
    public.verify(encode_dss_signature(r, s), message, ec.ECDSA(SHA256()))


def test_gives_as_many_random_bytes_as_asked(tpm: Tpm) -> None:
    random = tpm.get_random(200)
    assert len(random) == 200
    assert tpm.get_random(200) != random


@pytest.mark.parametrize("bank", ["sha1", "sha256", "sha384"])
def test_reads_every_register_of_a_bank(tpm: Tpm, bank: str) -> None:
    values = tpm.pcr_read(bank, range(24))
    length = wire.DIGEST_LENGTHS[bank]
    assert list(values) == list(range(24))
    assert all(value == (b"\xff" if 17 <= i <= 22 else b"\0") * length for i, value in values.items())


def test_extends_by_the_digest_as_it_is(tpm: Tpm) -> None:
    """Trap 15: the TPM does not hash its input first."""
    tpm.pcr_extend(14, {"sha256": b"\x01" * 32, "sha384": b"\x02" * 48})
    tpm.pcr_extend(14, {"sha256": b"\x03" * 32})
    first = hashlib.sha256(bytes(32) + b"\x01" * 32).digest()
    assert tpm.pcr_read("sha256", [14]) == {14: hashlib.sha256(first + b"\x03" * 32).digest()}
    assert tpm.pcr_read("sha384", [14]) == {14: hashlib.sha384(bytes(48) + b"\x02" * 48).digest()}
    assert tpm.pcr_read("sha1", [14]) == {14: bytes(20)}


@pytest.mark.parametrize("indices", [[], [24], [-1]])
def test_refuses_registers_that_do_not_exist(tpm: Tpm, indices: list[int]) -> None:
    with pytest.raises(ProtocolError) as caught:
        tpm.pcr_read("sha256", indices)
    assert caught.value.code == "tpm_device.pcr"


def test_refuses_a_digest_of_another_banks_length(tpm: Tpm) -> None:
    with pytest.raises(ProtocolError) as caught:
        tpm.pcr_extend(14, {"sha256": bytes(48)})
    assert caught.value.code == "tpm_device.digest.length"


@pytest.mark.parametrize("template", [ECC_TEMPLATE, RSA_TEMPLATE], ids=["ecc", "rsa"])
def test_a_template_always_gives_the_same_key(tpm: Tpm, template: bytes) -> None:
    with tpm.primary(wire.RH_ENDORSEMENT, template) as first:
        pass
    with tpm.primary(wire.RH_ENDORSEMENT, template) as second:
        assert (second.public, second.name) == (first.public, first.name)
    assert first.name == b"\x00\x0b" + hashlib.sha256(first.public).digest()


def test_another_hierarchy_gives_another_key(tpm: Tpm) -> None:
    with (
        tpm.primary(wire.RH_ENDORSEMENT, ECC_TEMPLATE) as first,
        tpm.primary(wire.RH_OWNER, ECC_TEMPLATE) as second,
    ):
        assert first.public != second.public


def test_leaves_no_key_behind(tpm: Tpm) -> None:
    """A TPM has room for three."""
    for _ in range(4):
        with pytest.raises(TpmRefused), tpm.primary(wire.RH_ENDORSEMENT, ECC_TEMPLATE) as key:
            tpm.quote(key.handle, bytes(67), "sha256", [0])


@pytest.mark.parametrize("template", [ECC_TEMPLATE, RSA_TEMPLATE], ids=["ecc", "rsa"])
def test_quotes_verify(tpm: Tpm, template: bytes) -> None:
    tpm.pcr_extend(14, {"sha256": b"\x01" * 32})
    with tpm.primary(wire.RH_ENDORSEMENT, template) as key:
        quoted = tpm.quote(key.handle, QUALIFYING, "sha256", [0, 2, 14])
    verify(ak_public_key(key.public), quoted.message, quoted.signature)
    values = tpm.pcr_read("sha256", [0, 2, 14])
    extra, chosen, digest = fields(quoted.message)
    assert extra == QUALIFYING
    assert chosen == bytes.fromhex("000b 03 054000")
    assert digest == hashlib.sha256(values[0] + values[2] + values[14]).digest()


def test_a_quotes_signer_is_named_by_its_hierarchy_and_key(tpm: Tpm) -> None:
    with tpm.primary(wire.RH_ENDORSEMENT, ECC_TEMPLATE) as key:
        message = tpm.quote(key.handle, b"", "sha256", [0]).message
    qualified = hashlib.sha256(bytes.fromhex("4000000b") + key.name).digest()
    assert message[6:42] == b"\x00\x22\x00\x0b" + qualified


@pytest.mark.skipif(shutil.which("tpm2_checkquote") is None, reason="tpm2_checkquote: install tpm2-tools")
@pytest.mark.parametrize("template", [ECC_TEMPLATE, RSA_TEMPLATE], ids=["ecc", "rsa"])
def test_the_reference_tools_accept_a_quote(tpm: Tpm, template: bytes, tmp_path: Path) -> None:
    with tpm.primary(wire.RH_ENDORSEMENT, template) as key:
        quoted = tpm.quote(key.handle, QUALIFYING, "sha256", [0, 2, 14])
    public = ak_public_key(key.public).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for name, content in (
        ("public", public),
        ("message", quoted.message),
        ("signature", quoted.signature),
    ):
        (tmp_path / name).write_bytes(content)
    arguments = ["-u", "public", "-m", "message", "-s", "signature", "-g", "sha256", "-q", QUALIFYING.hex()]
    subprocess.run(["tpm2_checkquote", *arguments], cwd=tmp_path, check=True, capture_output=True)


@pytest.mark.parametrize(
    ("call", "rc"),
    [
        (lambda tpm: tpm.run("nothing", 0x999), 0x143),
        (lambda tpm: tpm.run("PCR_Extend", wire.CC_PCR_EXTEND, handles=[14]), 0x125),
        (lambda tpm: tpm.flush(0x80000005), 0x1C4),
        (lambda tpm: tpm.quote(0x80000005, b"", "sha256", [0]), 0x184),
        (
            lambda tpm: tpm.run(
                "PCR_Extend",
                wire.CC_PCR_EXTEND,
                handles=[14],
                auths=[Auth(password=b"wrong")],
                parameters=wire.encode_digests({"sha256": bytes(32)}),
            ),
            0x9A2,
        ),
        (
            lambda tpm: tpm.run(
                "PCR_Extend",
                wire.CC_PCR_EXTEND,
                handles=[14],
                auths=[Auth()],
                parameters=bytes.fromhex("00000001 0099"),
            ),
            0x1C3,
        ),
        (
            lambda tpm: tpm.run(
                "PCR_Extend",
                wire.CC_PCR_EXTEND,
                handles=[24],
                auths=[Auth()],
                parameters=wire.encode_digests({"sha256": bytes(32)}),
            ),
            0x184,
        ),
        (lambda tpm: tpm.primary(0x40000002, ECC_TEMPLATE).__enter__(), 0x184),
        (lambda tpm: tpm.primary(wire.RH_OWNER, b"").__enter__(), 0x2D5),
        (lambda tpm: tpm.primary(wire.RH_OWNER, ECC_TEMPLATE[:-1]).__enter__(), 0x2D5),
        (lambda tpm: tpm.primary(wire.RH_OWNER, b"\x00\x99" + ECC_TEMPLATE[2:]).__enter__(), 0x2CA),
    ],
)
def test_both_refuse_a_mistake_with_the_same_code(tpm: Tpm, call, rc: int) -> None:
    with pytest.raises(TpmRefused) as caught:
        call(tpm)
    assert hex(caught.value.rc) == hex(rc)


def test_a_storage_key_is_no_attestation_key(swtpm) -> None:
    with Tpm(swtpm).primary(wire.RH_OWNER, STORAGE_TEMPLATE) as key, pytest.raises(ProtocolError) as caught:
        ak_public_key(key.public)
    assert caught.value.code == "tpm_device.key"
