"""Google's attestation key, on both TPMs."""

import hashlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from enclave.devices import tpm_wire as wire
from enclave.devices.gcp_ak import ECC_AK, RSA_AK, AkIndexes, GcpVtpm, ak_public_key
from enclave.devices.tpm import Tpm
from enclave.devices.tpm_device import TpmDevice
from enclave.devices.tpm_nv import NvStorage
from enclave.simulator.gcp_vtpm import ECC_TEMPLATE, RSA_TEMPLATE, provision_ak
from enclave.simulator.software_tpm import SoftwareTpm
from enclave.simulator.swtpm import Swtpm
from shared.attestation.gcp import QUOTED_PCRS
from shared.errors import ProtocolError, UnavailableError

QUALIFYING = hashlib.sha256(b"a TDX quote").digest()


def spki(key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey) -> bytes:
    """Stand in for a certificate: the key itself, padded to two chunks."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo).ljust(1500, b"\0")


@pytest.mark.parametrize(
    ("indexes", "algorithm"), [(ECC_AK, wire.ALG_ECDSA), (RSA_AK, wire.ALG_RSASSA)], ids=["ecc", "rsa"]
)
def test_quotes_by_the_key_that_is_there(tpm: Tpm, indexes: AkIndexes, algorithm: int) -> None:
    certificate = provision_ak(tpm, spki, indexes=indexes)
    quote = GcpVtpm(tpm).quote(QUALIFYING)
    assert quote.certificate == certificate
    assert quote.quoted.signature[:2] == wire.u16(algorithm)
    assert QUALIFYING in quote.quoted.message
    assert quote.values == tpm.pcr_read("sha256", QUOTED_PCRS)


def test_prefers_the_ecc_key(tpm: Tpm) -> None:
    provision_ak(tpm, spki, indexes=RSA_AK)
    certificate = provision_ak(tpm, spki, indexes=ECC_AK)
    assert GcpVtpm(tpm).quote(QUALIFYING).certificate == certificate


def test_does_not_use_a_template_without_its_certificate(tpm: Tpm) -> None:
    certificate = provision_ak(tpm, spki, indexes=RSA_AK)
    provision_ak(tpm, spki, indexes=ECC_AK)
    NvStorage(tpm).undefine(ECC_AK.certificate)
    assert GcpVtpm(tpm).quote(QUALIFYING).certificate == certificate


def test_provisioning_again_replaces_the_certificate(tpm: Tpm) -> None:
    provision_ak(tpm, spki)
    provision_ak(tpm, lambda _key: b"another")
    assert GcpVtpm(tpm).quote(QUALIFYING).certificate == b"another"


def test_reports_a_vtpm_without_a_key(tpm: Tpm) -> None:
    with pytest.raises(UnavailableError) as caught:
        GcpVtpm(tpm).quote(QUALIFYING)
    assert caught.value.code == "tpm_device.ak.absent"


def test_the_public_area_identifies_the_vtpm(tpm: Tpm) -> None:
    provision_ak(tpm, spki)
    vtpm = GcpVtpm(tpm)
    public = vtpm.ak_public()
    assert public == vtpm.ak_public()
    assert spki(ak_public_key(public)) == NvStorage(tpm).read(ECC_AK.certificate)


def test_the_key_outlives_a_reboot(tmp_path: Path, swtpm: Swtpm) -> None:
    swtpm.close()  # the fixture tells whether there is a real TPM to restart
    publics = []
    with Swtpm(tmp_path / "vtpm") as first:
        certificate = provision_ak(Tpm(first), spki)
        publics.append(GcpVtpm(Tpm(first)).ak_public())
    with Swtpm(tmp_path / "vtpm") as second:
        publics.append(GcpVtpm(Tpm(second)).ak_public())
        assert GcpVtpm(Tpm(second)).quote(QUALIFYING).certificate == certificate
    assert publics[0] == publics[1]


class Moving:
    """A TPM of which another process extends PCR14 after each of the first `times` quotes."""

    def __init__(self, device: TpmDevice, times: int) -> None:
        self.device = device
        self.times = times

    def transact(self, command: bytes) -> bytes:
        response = self.device.transact(command)
        if command[6:10] == wire.u32(wire.CC_QUOTE) and self.times:
            self.times -= 1
            Tpm(self.device).pcr_extend(14, {"sha256": bytes(32)})
        return response


def test_quotes_again_when_a_register_moved() -> None:
    device = SoftwareTpm()
    provision_ak(Tpm(device), spki)
    quote = GcpVtpm(Tpm(Moving(device, times=2))).quote(QUALIFYING)
    assert quote.values == Tpm(device).pcr_read("sha256", QUOTED_PCRS)


def test_gives_up_on_registers_that_keep_moving() -> None:
    device = SoftwareTpm()
    provision_ak(Tpm(device), spki)
    with pytest.raises(UnavailableError) as caught:
        GcpVtpm(Tpm(Moving(device, times=3))).quote(QUALIFYING)
    assert caught.value.code == "tpm_device.pcr.moving"


@pytest.mark.parametrize(
    ("public", "code"),
    [
        (b"", "tpm_device.response.layout"),
        (ECC_TEMPLATE, "tpm_device.key"),  # the point (0, 0) is not on the curve
        (RSA_TEMPLATE, "tpm_device.key"),  # a modulus of zero
        (ECC_TEMPLATE[:-1], "tpm_device.response.layout"),
        (ECC_TEMPLATE + b"\0", "tpm_device.response.layout"),
        (RSA_TEMPLATE + b"\0", "tpm_device.response.layout"),
        (b"\x00\x25" + ECC_TEMPLATE[2:], "tpm_device.key"),
        (ECC_TEMPLATE[:10] + b"\x00\x06" + ECC_TEMPLATE[12:], "tpm_device.key"),
        (ECC_TEMPLATE[:12] + b"\x00\x1a" + ECC_TEMPLATE[14:], "tpm_device.key"),
        (ECC_TEMPLATE[:16] + b"\x00\x04" + ECC_TEMPLATE[18:], "tpm_device.key"),
    ],
)
def test_refuses_a_public_area_that_is_no_attestation_key(public: bytes, code: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        ak_public_key(public)
    assert caught.value.code == code
