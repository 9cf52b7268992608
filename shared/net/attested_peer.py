"""Who is at the other end, and whether that is whom one wants (spec kms section 4.7, SECURITY N-50, N-51).

Attested TLS tells that a key lives in a machine that runs some software. That says nothing about which of
all such machines it is: evidence can be relayed by whoever runs the same software elsewhere. So a caller
always names whom it wants, by what is measured or what a KMS vouches for, and never by an address.
"""

from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from shared.attestation.identity import AppInfo, info_of
from shared.attestation.image import check_image
from shared.attestation.verdict import Verdict
from shared.attestation.verify import VerifiedAttestation
from shared.boot_info import NITRO_ENCLAVE
from shared.errors import ConfigError, InvalidEvidence
from shared.net.peer_verifier import PeerVerifier
from shared.ratls.app_peer import CLIENT, SERVER, AppCertificate, check_app_chain, check_self_issued
from shared.ratls.peer import check_kms_certificate, ratls_report_data, validity

Usage = Literal["app:custom", "kms:rpc"]

MAX_AGE: Final = 86_400
"""Seconds that evidence is believed for. Evidence of Nitro ends earlier, by `nitro.max_age` of the policy."""

_PINS: Final = ("app_id", "instance_id", "compose_hash", "os_image_hash", "device_id")


class Expected(msgspec.Struct, frozen=True, kw_only=True):
    """Whom one wants. None of a pin asks nothing of that field.

    `usage` is `app:custom` for an app or `kms:rpc` for a KMS. `root_ca` is the KMS's root CA (PEM): an app
    must then have its certificate from a KMS with that root. Without it an app's evidence alone speaks for
    it, and its image must be named as well, by `os_image_hash`, or for an enclave by `compose_hash`, which is
    the same there: an image of anybody's own making records whatever app it likes. `app_id` and
    `instance_id` have 20 bytes, `compose_hash`, `os_image_hash` and `device_id` 32. `max_age` (seconds) is
    for evidence as old as its own time says, or where it carries none, as the certificate's beginning; None
    leaves that to the policy.

    Raises `ConfigError("peer.expected")` where anybody would do: a KMS without its root, an app of which
    neither `app_id` nor `compose_hash` is named.
    """

    usage: Usage = "app:custom"
    root_ca: bytes | None = None
    app_id: bytes | None = None
    instance_id: bytes | None = None
    compose_hash: bytes | None = None
    os_image_hash: bytes | None = None
    device_id: bytes | None = None
    max_age: int | None = MAX_AGE

    def __post_init__(self) -> None:
        if self.usage == "kms:rpc" and self.root_ca is None:
            raise ConfigError("peer.expected", "a kms is expected without its root ca, so any would do")
        if self.usage != "kms:rpc" and self.app_id is None and self.compose_hash is None:
            raise ConfigError("peer.expected", "an app is expected without app_id or compose_hash")


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Who it is, as raw bytes; a field that the platform does not have is empty.

    `self_asserted` names the fields that nothing signs but the peer itself. `vouched_by` says whose word the
    app id is: the KMS's whose root was pinned, or the evidence's alone. `verdict` is what was established,
    lane by lane.
    """

    usage: Usage
    vouched_by: Literal["kms", "evidence"]
    app_id: bytes
    compose_hash: bytes
    os_image_hash: bytes
    device_id: bytes
    instance_id: bytes
    self_asserted: tuple[str, ...]
    verdict: Verdict

    @property
    def simulated(self) -> bool:
        """Whether the evidence is of no real hardware."""
        return self.verdict.simulated

    def to_json(self) -> dict[str, Any]:
        """Return plain objects for a JSON encoder: bytes as hex, the verdict in full."""
        shown: dict[str, Any] = {"usage": self.usage, "vouched_by": self.vouched_by}
        shown |= {name: getattr(self, name).hex() for name in _PINS}
        return shown | {
            "simulated": self.simulated,
            "self_asserted": list(self.self_asserted),
            "verdict": self.verdict.to_json(),
        }


def check_server(
    chain: Sequence[bytes], *, expected: Expected, hostname: str, verifier: PeerVerifier
) -> Peer:
    """Return who the server of a TLS connection is, by the certificates (DER, leaf first) that it sent.

    1. The certificate is what `expected.usage` says it is: a KMS's, issued by the pinned root for `hostname`,
       or an app's. An app's may be for any name: names prove nothing here. 2. It carries evidence, over its
       own key, which the verifier's anchors, policy and clock accept. 3. The image is the measured one.
    4. The evidence is not too old. 5. App id of certificate and evidence agree. 6. Every pin holds, and by
       something better than the peer's own word.

    TLS must have proven that the peer holds the leaf's key. Raises `InvalidEvidence`: `ratls.*`,
    `peer.stale`, `peer.app_id.mixed`, `peer.self_asserted`, `peer.image`, and for a pin that does not hold
    `peer.app_id`, `peer.instance_id`, `peer.compose_hash`, `peer.os_image_hash`, `peer.device_id`; and what
    the verifier and `check_image` raise.
    """
    now = verifier.now()
    if expected.usage == "kms:rpc":
        envelope = check_kms_certificate(
            chain[0], root_ca_pem=expected.root_ca or b"", hostname=hostname, now=now
        )
        certificate = AppCertificate(key=b"", not_before=validity(chain[0])[0], envelope=envelope)
        return _judge(chain[0], certificate, expected, verifier)
    if expected.root_ca is None:
        return _judge(chain[0], check_self_issued(chain, now=now, role=SERVER), expected, verifier)
    certificate = check_app_chain(chain, root_ca_pem=expected.root_ca, now=now, role=SERVER)
    return _judge(chain[0], certificate, expected, verifier)


def check_client(chain: Sequence[bytes], *, expected: Expected, verifier: PeerVerifier) -> Peer:
    """Return who the client of a TLS connection is: as `check_server`, for an app that calls an app.

    Raises as it does, `InvalidEvidence("ratls.chain")` for a client that showed no certificate, and
    `ConfigError("peer.expected")` where a KMS is expected: none calls apps.
    """
    if expected.usage == "kms:rpc":
        raise ConfigError("peer.expected", "a kms is expected as a client, which none is to an app")
    now = verifier.now()
    if expected.root_ca is None:
        certificate = check_self_issued(chain, now=now, role=CLIENT)
    else:
        certificate = check_app_chain(chain, root_ca_pem=expected.root_ca, now=now, role=CLIENT)
    return _judge(chain[0], certificate, expected, verifier)


def _judge(leaf: bytes, certificate: AppCertificate, expected: Expected, verifier: PeerVerifier) -> Peer:
    if certificate.envelope is None:
        raise InvalidEvidence("ratls.attestation.missing", "the peer's certificate carries no attestation")
    verified = verifier.verify(certificate.envelope, ratls_report_data(leaf))
    checked = check_image(verified)
    info = info_of(checked)
    _check_age(checked, certificate, expected)
    self_asserted = info.self_asserted
    if certificate.app_id:
        if info.app_id != certificate.app_id:
            raise InvalidEvidence(
                "peer.app_id.mixed",
                f"certificate is of app {certificate.app_id.hex()}, its evidence of {info.app_id.hex()}",
            )
        self_asserted = tuple(name for name in self_asserted if name != "app_id")
    _check_pins(info, self_asserted, expected)
    vouched_by: Literal["kms", "evidence"] = "kms" if expected.root_ca is not None else "evidence"
    if vouched_by == "evidence":
        _check_image_pinned(checked.verdict.platform, expected)
    return Peer(
        usage=expected.usage,
        vouched_by=vouched_by,
        app_id=info.app_id,
        compose_hash=info.compose_hash,
        os_image_hash=info.os_image_hash,
        device_id=info.device_id,
        instance_id=info.instance_id,
        self_asserted=self_asserted,
        verdict=checked.verdict,
    )


def _check_age(verified: VerifiedAttestation, certificate: AppCertificate, expected: Expected) -> None:
    verdict = verified.verdict
    made_at = certificate.not_before if verdict.made_at is None else verdict.made_at
    if expected.max_age is not None and verdict.verified_at - made_at > expected.max_age:
        raise InvalidEvidence(
            "peer.stale",
            f"evidence is of {made_at}, {verdict.verified_at - made_at} seconds old, "
            f"expected at most {expected.max_age}",
        )


def _check_pins(info: AppInfo, self_asserted: tuple[str, ...], expected: Expected) -> None:
    for name in _PINS:
        wanted, found = getattr(expected, name), getattr(info, name)
        if wanted is None:
            continue
        if found != wanted:
            raise InvalidEvidence(
                f"peer.{name}", f"peer has {name} {found.hex() or 'none'}, expected {wanted.hex()}"
            )
        # a known image names the app that it was made for: a claim, but of software that one chose to believe
        images = (expected.compose_hash, expected.os_image_hash)
        by_image = name == "app_id" and images != (None, None)
        if name in self_asserted and not by_image:
            raise InvalidEvidence(
                "peer.self_asserted",
                f"{name} is the peer's own word: expect it of a kms's root, or with an image",
            )


def _check_image_pinned(platform: str, expected: Expected) -> None:
    """Refuse evidence of an image that nobody chose: what it recorded of its app is its maker's word."""
    is_measured_whole = platform == NITRO_ENCLAVE and expected.compose_hash is not None
    if expected.os_image_hash is None and not is_measured_whole:
        raise InvalidEvidence(
            "peer.image",
            "any image can name this app, and no kms vouches for the peer's: "
            "expect its os_image_hash, or a kms's root",
        )
