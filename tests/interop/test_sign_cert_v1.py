"""Requests of version 1: a plain TDX guest's quote and event log, as old guests send them (spec kms 4.5)."""

import hashlib

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.interop.conftest import Site
from tests.interop.guests import sample_app_id
from tests.interop.openssl import verified_by_openssl
from tests.interop.spec_client import evidence
from tests.interop.spec_client.certificates import (
    APP_ID,
    APP_INFO,
    ATTESTATION,
    USAGE,
    CertConfig,
    csr_v1,
    extension,
    spki,
)
from tests.interop.spec_client.evidence import Evidence, binding
from tests.interop.spec_client.kms import Attest, sign_cert
from tests.interop.spec_client.prpc import Refused
from tests.interop.webhook import Webhook

CONFIG = CertConfig("app.example", subject_alt_names=("app.example",), usage_server_auth=True, ext_quote=True)


@pytest.fixture(scope="module")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(scope="module")
def shown(tdx_app: Attest, key: ec.EllipticCurvePrivateKey) -> Evidence:
    return tdx_app(binding(spki(key)))


@pytest.fixture(scope="module")
def chain(nitro: Site, key: ec.EllipticCurvePrivateKey, shown: Evidence) -> list[x509.Certificate]:
    return _signed(nitro, key, shown)


def _signed(site: Site, key: ec.EllipticCurvePrivateKey, shown: Evidence) -> list[x509.Certificate]:
    csr = csr_v1(spki(key), CONFIG, shown.quote, evidence.event_log_json(shown.tdx_events))
    return sign_cert(site.kms.anyone, key, csr, api_version=1, vm_config=shown.config)


def _tdx_registers(quote: bytes) -> bytes:
    """MRTD, RTMR0, RTMR1, RTMR2 of a quote of version 4 (spec attestation 3.1)."""
    assert quote[:2] == b"\x04\x00"
    return quote[184:232] + quote[376:520]


def _tdx_aggregated(shown: Evidence) -> str:
    """Up to `boot-mr-done`, with the configuration's registers where one is set (spec kms 6.3)."""
    replayed = bytes(48)
    for name, payload in shown.runtime_events:
        digest = hashlib.sha384(b"\x01\x00\x00\x08:" + name.encode() + b":" + payload).digest()
        replayed = hashlib.sha384(replayed + digest).digest()
        if name == "boot-mr-done":
            break
    configured = shown.quote[232:376]
    assert any(configured)
    return hashlib.sha256(_tdx_registers(shown.quote) + replayed + configured).hexdigest()


def test_openssl_verifies_the_chain(nitro: Site, chain: list[x509.Certificate]) -> None:
    root = x509.load_pem_x509_certificate(nitro.kms.get_temp_ca().root_pem.encode())
    assert verified_by_openssl(chain, root)


def test_the_leaf_has_the_guests_app_id_and_evidence(shown: Evidence, chain: list[x509.Certificate]) -> None:
    assert extension(chain[0], APP_ID) == extension(chain[1], APP_ID) == sample_app_id()
    assert extension(chain[0], USAGE) == b"app:custom"
    issued = evidence.decode(extension(chain[0], ATTESTATION) or b"")
    assert (issued.variant, issued.quote) == (evidence.TDX, shown.quote)
    assert issued.report_data == binding(spki(chain[0]))
    assert issued.runtime_events == shown.runtime_events
    assert issued.config == ""


def test_app_info_was_no_part_of_it(chain: list[x509.Certificate]) -> None:
    assert extension(chain[0], APP_INFO) is None


def test_the_policy_is_asked_about_its_boot(
    shown: Evidence, chain: list[x509.Certificate], webhook: Webhook
) -> None:
    assert chain
    boot_info = next(info for _, info in reversed(webhook.asked) if info["teeVariant"] == "dstack-tdx")
    events = dict(shown.runtime_events)
    assert boot_info["appId"] == events["app-id"].hex()
    assert boot_info["composeHash"] == events["compose-hash"].hex()
    assert boot_info["instanceId"] == events["instance-id"].hex()
    assert (boot_info["tcbStatus"], boot_info["keyProviderInfo"]) == ("UpToDate", "")
    registers = _tdx_registers(shown.quote)
    assert boot_info["mrSystem"] == hashlib.sha256(registers + bytes(32)).hexdigest()
    assert boot_info["mrAggregated"] == _tdx_aggregated(shown)


def test_a_stripped_log_does_as_well(nitro: Site, key: ec.EllipticCurvePrivateKey, shown: Evidence) -> None:
    stripped = evidence.stripped(shown)
    assert len(stripped.tdx_events) <= len(shown.tdx_events)
    assert len(_signed(nitro, key, stripped)) == 3


def test_a_quote_over_another_key_gets_nothing(nitro: Site, shown: Evidence) -> None:
    another = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(Refused) as refused:
        _signed(nitro, another, shown)
    assert refused.value.text.startswith("invalid quote: report data mismatch")


def test_without_the_images_document_nothing_is_signed(
    nitro: Site, key: ec.EllipticCurvePrivateKey, shown: Evidence
) -> None:
    """The request has no config of its own: what the image is comes with `vm_config`."""
    csr = csr_v1(spki(key), CONFIG, shown.quote, evidence.event_log_json(shown.tdx_events))
    with pytest.raises(Refused) as refused:
        sign_cert(nitro.kms.anyone, key, csr, api_version=1)
    assert refused.value.answer.status == 400
