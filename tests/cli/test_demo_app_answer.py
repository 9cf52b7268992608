"""What the demo's owner of an app accepts as that app's answer, and what not."""

import os
from collections.abc import Callable
from hashlib import sha256, sha512
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from cli.demo.app_answer import AppAnswer, check_answer
from cli.demo.guests import Measured
from cli.demo.kms_operator import Audit
from enclave.simulator.evidence import APP_COMPOSE, sample_guest
from functions.deploy.evidence import Verifier
from shared.attestation.envelope import encode_envelope
from shared.attestation.identity import info_of
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.errors import InvalidEvidence
from shared.keys.app_keys import RootKeys, app_ca_scalar, derive_app_keys
from shared.keys.guest_keys import AppKey
from shared.keys.guest_signature import sign
from shared.keys.k256 import public_key
from shared.keys.kdf import p256_key
from shared.ratls.app_certificate import Stamps, app_certificate
from shared.ratls.certificates import ROOT_CA_NAME, app_ca_certificate, self_signed_ca
from shared.ratls.csr import CsrConfig
from tests.shared.refusal import refuses

NOW = 1_790_000_000
ROOTS = RootKeys(ca_scalar=bytes([1]) * 32, k256=bytes([2]) * 32)
APP_ID = sha256(APP_COMPOSE).digest()[:20]
OTHER_APP = bytes([9]) * 20
CHALLENGE = bytes(range(32))
ROOT_KEY = p256_key(ROOTS.ca_scalar)
ROOT_CA = self_signed_ca(ROOT_KEY, ROOT_CA_NAME, 1, NOW - 60, NOW + 86_400)
AUDIT = Audit(
    root_pem=ROOT_CA.public_bytes(Encoding.PEM),
    k256_pubkey=public_key(ROOTS.k256),
    auth_mode="proof",
    clock_source="nsm",
    quorum=1,
)


class World(msgspec.Struct, frozen=True):
    """A guest, its answer, and what its owner knows."""

    answer: AppAnswer
    planned: Measured
    verifier: Verifier
    attest: Callable[[bytes], bytes]

    def check(self, app_id: bytes = APP_ID, planned: Measured | None = None, **changes: object) -> None:
        check_answer(
            msgspec.structs.replace(self.answer, **changes),
            challenge=CHALLENGE,
            app_id=app_id,
            planned=planned or self.planned,
            audit=AUDIT,
            verifier=self.verifier,
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    guest = sample_guest("nitro", tmp_path_factory.mktemp("image"), now=NOW)
    anchors = TrustAnchors.production().with_extra(guest.root_pem, signer="nitro")
    keys = derive_app_keys(ROOTS, APP_ID)
    signing = AppKey(keys.k256_key, keys.k256_signature).derive("vms", "signing", "secp256k1")
    evidence = guest.attest(sha512(CHALLENGE + signing.public_key).digest())
    info = info_of(verify_attestation(evidence, now=NOW, anchors=anchors, endorsements=guest.endorsements))
    answer = AppAnswer(
        app_id=APP_ID.hex(),
        wallet_bytes=32,
        public_key=signing.public_key.hex(),
        signature=sign(signing.key, "secp256k1", CHALLENGE).hex(),
        signature_chain=tuple(link.hex() for link in signing.signature_chain),
        attestation=encode_envelope(evidence).hex(),
        certificate_chain=certificates(APP_ID),
    )
    planned = Measured(image=Path(), os_image_hash=info.os_image_hash, compose_hash=info.compose_hash)
    return World(
        answer, planned, Verifier(anchors, lambda: NOW), lambda data: encode_envelope(guest.attest(data))
    )


def certificates(app_id: bytes) -> tuple[str, ...]:
    ca_key = p256_key(app_ca_scalar(ROOTS, app_id))
    ca = app_ca_certificate(ca_key, app_id=app_id, issuer=(ROOT_CA, ROOT_KEY))
    leaf = app_certificate(
        p256_key(os.urandom(31).rjust(32, b"\0")).public_key(),
        CsrConfig(subject="demo-app", usage_server_auth=True),
        Stamps(app_id=app_id),
        issuer=(ca, ca_key),
        times=(NOW - 60, NOW + 3600),
    )
    return tuple(one.public_bytes(Encoding.PEM).decode() for one in (leaf, ca, ROOT_CA))


def test_accepts_the_answer_of_the_app(world: World) -> None:
    world.check()


def test_refuses_a_key_of_another_app(world: World) -> None:
    with refuses("keys.issued.signer"):
        world.check(app_id=OTHER_APP)


def test_refuses_a_signature_of_something_else(world: World) -> None:
    keys = derive_app_keys(ROOTS, APP_ID)
    signing = AppKey(keys.k256_key, keys.k256_signature).derive("vms", "signing", "secp256k1")
    with refuses("demo.app.signature"):
        world.check(signature=sign(signing.key, "secp256k1", b"something else").hex())


def test_refuses_evidence_that_names_another_key(world: World) -> None:
    with pytest.raises(InvalidEvidence) as caught:
        world.check(attestation=world.attest(bytes(64)).hex())
    assert caught.value.code.endswith("report_data")


def test_refuses_another_workload_than_was_planned(world: World) -> None:
    with refuses("demo.app.image"):
        world.check(planned=msgspec.structs.replace(world.planned, compose_hash=bytes(32)))


def test_refuses_the_certificate_of_another_app(world: World) -> None:
    with refuses("demo.app.certificate"):
        world.check(certificate_chain=certificates(OTHER_APP))


def test_refuses_a_certificate_that_is_none(world: World) -> None:
    with refuses("demo.app.certificate"):
        world.check(certificate_chain=("none",))
