"""Boot of an app's guest: get the keys into memory, then answer evidence challenges."""

import hashlib
import sys

from enclave.agent.evidence import evidence_app
from enclave.dstack_util.enclave_config import load_enclave_config
from enclave.dstack_util.get_keys import get_keys
from enclave.log import log_event
from enclave.platform import Platform
from enclave.serving.attested_tls import build_plain_server, run_server
from shared.errors import DstackError, ExitCode

FINGERPRINT_DIGITS = 16


def fingerprint(secret: bytes) -> str:
    """Return the first 16 hex digits of SHA-256: enough to compare a key, nothing to use it."""
    return hashlib.sha256(secret).hexdigest()[:FINGERPRINT_DIGITS]


def main(argv: list[str] | None = None, platform: Platform | None = None) -> int:
    """Run until stopped. Takes no arguments: what it does is fixed by the measured image."""
    del argv
    try:
        platform = platform or Platform.detect()
        config = load_enclave_config(platform)
        app_id = config.app_id_bytes()
        bundle = get_keys(platform)
        platform.tee.record_keys(os_image_hash=bundle.os_image_hash, kms_root=bundle.root_spki())
    except DstackError as error:
        log_event("agent.failed", code=error.code, message=error.message)
        sys.stderr.write(f"agent: {error} [{error.code}]\n")
        return error.exit_code
    keys = bundle.keys
    log_event(
        "agent.keys",
        disk_crypt_key=fingerprint(keys.disk_crypt_key),
        env_crypt_key=fingerprint(keys.env_crypt_key),
        k256_key=fingerprint(keys.k256_key),
        k256_root=bundle.k256_root.hex(),
        gateway_app_id=bundle.gateway_app_id,
    )
    app = evidence_app(platform.tee.attestor(app_id), app_id)
    listener = platform.tee.listen(config.evidence.address, config.evidence.port)
    log_event("agent.ready", evidence_port=config.evidence.port)
    run_server(build_plain_server(app), [listener])
    return ExitCode.OK
