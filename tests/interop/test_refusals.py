"""What a client is told when it gets nothing, in upstream's words where the specification has them."""

import json

import pytest

from tests.interop.conftest import APP_ID, Hardware, Site
from tests.interop.guests import nitro_guest
from tests.interop.spec_client import protobuf
from tests.interop.spec_client.kms import Attest, app_key_request, identity
from tests.interop.spec_client.prpc import Channel, Refused
from tests.interop.webhook import Webhook


def _told(channel: Channel, method: str, message: object) -> str:
    with pytest.raises(Refused) as refused:
        channel.call(method, message)
    assert refused.value.answer.status == 400
    return refused.value.text


def test_no_certificate(nitro: Site) -> None:
    text = "App not allowed: No attestation provided"
    assert _told(nitro.kms.trusted(None), "GetAppKey", app_key_request()) == text
    with pytest.raises(Refused) as refused:
        nitro.kms.trusted(None).call_protobuf("GetAppKey", protobuf.uint(1, 1))
    assert protobuf.fields(refused.value.answer.body)[1] == [text.encode()]


def test_a_certificate_without_evidence(nitro: Site) -> None:
    temp_ca = nitro.kms.get_temp_ca()
    bare = identity(None, (temp_ca.certificate, temp_ca.key))
    told = _told(nitro.kms.trusted(bare), "GetAppKey", app_key_request())
    assert told == "App not allowed: No attestation provided"


def test_no_certificate_for_the_root_keys(nitro: Site) -> None:
    assert _told(nitro.kms.trusted(None), "GetKmsKey", {}).endswith("No attestation provided")


@pytest.mark.parametrize("version", [2, 2**32 - 1])
def test_an_api_version_of_the_future(nitro: Site, enclave: Attest, version: int) -> None:
    guest = nitro.kms.as_guest(enclave)
    told = _told(guest, "GetAppKey", app_key_request(api_version=version))
    assert told == f"Unsupported API version: {version}"


def test_an_enclave_that_names_no_app(nitro: Site, hardware: Hardware) -> None:
    nameless = nitro.kms.as_guest(nitro_guest(hardware.nitro, None))
    told = _told(nameless, "GetAppKey", app_key_request())
    assert told.startswith("App not allowed: app_id must be 20 bytes")


def test_a_denial_gives_the_policys_reason(nitro: Site, enclave: Attest, webhook: Webhook) -> None:
    guest = nitro.kms.as_guest(enclave)
    with webhook.denying("app", "Compose hash not allowed"):
        told = _told(guest, "GetAppKey", app_key_request())
    assert told == "App not allowed: Boot denied: Compose hash not allowed"


SELF_CHECKED = ["GetTempCaCert", "GetAppEnvEncryptPubKey", "SignCert", "GetAppKey", "GetKmsKey"]


@pytest.mark.parametrize("method", SELF_CHECKED)
def test_a_kms_that_is_revoked_stops_at_once(
    nitro: Site, enclave: Attest, webhook: Webhook, method: str
) -> None:
    guest = nitro.kms.as_guest(enclave)
    message = {"api_version": 1, "app_id": APP_ID.hex()}
    with webhook.denying("kms", "aggregated MR not allowed"):
        told = _told(guest, method, message)
        assert guest.call("GetMeta")["k256_pubkey"] == nitro.bootstrap["k256_pubkey"]
    assert told == "KMS self authorization failed: KMS is not allowed: aggregated MR not allowed"


def test_another_kms_that_is_denied(nitro: Site, hardware: Hardware, webhook: Webhook) -> None:
    attest = nitro_guest(hardware.nitro, None)
    new = nitro.kms.as_guest(attest)
    image = json.loads(attest(bytes(64)).config)["os_image_hash"]
    with webhook.denying("kms", "aggregated MR not allowed", image=image):
        told = _told(new, "GetKmsKey", {})
    assert told.endswith("Boot denied: aggregated MR not allowed")


def test_a_debug_enclave(nitro: Site, hardware: Hardware) -> None:
    debug = nitro_guest(hardware.nitro, APP_ID, {index: bytes(48) for index in range(3)})
    temp_ca = nitro.kms.get_temp_ca()
    with pytest.raises(Refused) as refused:
        nitro.kms.trusted(identity(debug, (temp_ca.certificate, temp_ca.key))).call(
            "GetAppKey", app_key_request()
        )
    assert refused.value.answer.status == 400
    assert "debug" in refused.value.text


def test_a_google_guest_with_the_specified_log_needs_a_pinned_boot(nitro: Site, gcp_app: Attest) -> None:
    """Ours asks for more than upstream: what firmware measured around the image, unless a policy names it."""
    config = gcp_app(bytes(64)).config
    with pytest.raises(Refused) as refused:
        nitro.kms.as_guest(gcp_app).call("GetAppKey", app_key_request(config))
    assert b'"code": "identity.os_image.unverified"' in refused.value.answer.body
