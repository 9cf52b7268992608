import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from enclave.simulator.ak_authority import SimulatedAkAuthority
from shared.attestation.ak_chain import ca_issuers_urls, crl_urls, verify_ak_chain
from shared.attestation.policy import Revocation
from shared.attestation.revocation import check_revocation
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Status
from shared.errors import InvalidEvidence, StorageError

NOW = 1_767_225_600


def new_key() -> ec.EllipticCurvePublicKey:
    return ec.generate_private_key(ec.SECP256R1()).public_key()


@pytest.mark.parametrize("rsa_keys", [False, True], ids=["p-256", "rsa"])
def test_guests_that_share_a_saved_authority_verify_under_one_root(tmp_path: Path, *, rsa_keys: bool) -> None:
    made = SimulatedAkAuthority.create("http://aks.invalid", rsa_keys=rsa_keys)
    made.save(tmp_path / "google")
    anchors = TrustAnchors.production().with_extra((tmp_path / "google" / "root.pem").read_bytes())
    for _ in range(2):
        authority = SimulatedAkAuthority.load(tmp_path / "google")
        assert authority.base_url == "http://aks.invalid"
        given = authority.endorsements(NOW)
        ak = authority.issue_ak(new_key())
        chain = verify_ak_chain(ak, given.certificates, now=NOW, anchors=anchors.gcp_tpm)
        result = check_revocation(chain.links, given.crls, now=NOW, mode=Revocation.REQUIRED)
        assert result.lane.status is Status.VERIFIED


def test_the_addresses_in_certificates_are_those_that_are_served() -> None:
    authority = SimulatedAkAuthority.create("http://aks.invalid")
    ak = authority.issue_ak(new_key())
    served = {f"http://aks.invalid{path}": content for path, content in authority.resources(NOW).items()}
    assert served[ca_issuers_urls(ak)[0]] == authority.intermediate.der
    assert served[ca_issuers_urls(authority.intermediate.der)[0]] == authority.root.der
    lists = [crl_urls(ak)[0], crl_urls(authority.intermediate.der)[0]]
    issuers = [x509.load_der_x509_crl(served[url]).issuer for url in lists]
    assert issuers == [authority.intermediate.certificate.subject, authority.root.certificate.subject]


def test_a_revoked_key_is_on_the_served_lists() -> None:
    authority = SimulatedAkAuthority.create()
    anchors = TrustAnchors.production().with_extra(authority.root_pem)
    ak = authority.issue_ak(new_key())
    given = authority.endorsements(NOW, (x509.load_der_x509_certificate(ak).serial_number,))
    chain = verify_ak_chain(ak, given.certificates, now=NOW, anchors=anchors.gcp_tpm)
    with pytest.raises(InvalidEvidence) as caught:
        check_revocation(chain.links, given.crls, now=NOW, mode=Revocation.REQUIRED)
    assert caught.value.code == "crl.revoked"


def test_files_are_private(tmp_path: Path) -> None:
    SimulatedAkAuthority.create().save(tmp_path / "google")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "google").iterdir()}
    names = ("root.pem", "root.key", "intermediate.pem", "intermediate.key", "url")
    assert modes == dict.fromkeys(names, 0o600)


def test_an_authority_is_never_replaced(tmp_path: Path) -> None:
    first = SimulatedAkAuthority.create()
    first.save(tmp_path)
    with pytest.raises(StorageError) as caught:
        SimulatedAkAuthority.create().save(tmp_path)
    assert caught.value.code == "simulator.authority.exists"
    assert SimulatedAkAuthority.load(tmp_path).root_pem == first.root_pem


def test_reports_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError) as caught:
        SimulatedAkAuthority.create().save(tmp_path / "file" / "google")
    assert caught.value.code == "simulator.authority.write"


def test_refuses_a_directory_that_holds_no_authority(tmp_path: Path) -> None:
    SimulatedAkAuthority.create().save(tmp_path)
    other = ed25519.Ed25519PrivateKey.generate()
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for damage in (
        lambda: (tmp_path / "root.key").write_bytes(pem),
        lambda: (tmp_path / "root.key").write_bytes(b"nothing"),
        lambda: (tmp_path / "root.pem").write_bytes(b"nothing"),
        (tmp_path / "url").unlink,
    ):
        damage()
        with pytest.raises(StorageError) as caught:
            SimulatedAkAuthority.load(tmp_path)
        assert caught.value.code == "simulator.authority.read"
