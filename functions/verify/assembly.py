"""From settings to a verifier with its sources: what the functions and `dstack-verifier` share."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from functions.verify.service import OsImage, VerifyService
from functions.verify.settings import VerifierSettings
from shared.attestation.endorsements import Endorsements
from shared.attestation.envelope import Attestation

if TYPE_CHECKING:
    from shared.net.endorsement_source import EndorsementSource
    from shared.net.os_image import OsImageStore


def service_from(settings: VerifierSettings) -> VerifyService:
    """Return the service that the settings describe; what opens sockets is made when it is first needed.

    Raises `ConfigError`: those of `VerifierSettings.anchors`, `policy` and `endorsements`.
    """
    anchors, policy, bundle = settings.anchors(), settings.policy(), settings.endorsements()

    @cache
    def source() -> "EndorsementSource":
        # sockets and TLS are a third of a cold start that Nitro evidence does not need
        from shared.net.endorsement_source import production_source  # noqa: PLC0415

        return production_source(
            bundle=bundle,
            pccs_url=settings.attestation.urls.pccs,
            offline=settings.attestation.offline,
            external=settings.attestation.insecure_allow_external_trust_anchors,
        )

    def gather(attestation: Attestation, now: int) -> Endorsements:
        return source().gather(attestation, anchors=anchors, policy=policy, now=now)

    @cache
    def images() -> "OsImageStore":
        from shared.net.os_image import OsImageStore  # noqa: PLC0415 - as above

        return OsImageStore(
            Path(settings.image_cache_dir),
            url_template=settings.image_download_url,
            timeout=settings.image_download_timeout_secs,
        )

    def os_image(image_hash: bytes) -> OsImage:
        return images().get(image_hash)

    return VerifyService(
        anchors,
        policy,
        gather=gather,
        os_image=None if settings.attestation.offline else os_image,
        overrides=settings.attestation.allow_request_overrides,
    )
