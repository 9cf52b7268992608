"""The KMS's methods, in upstream's order of checks and with its error texts (spec kms section 2).

This is the code that releases keys. It opens no socket and parses no HTTP: the caller's evidence arrives
verified and bound to its TLS key, policy arrives as an `Authorizer`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from cryptography.hazmat.primitives.serialization import Encoding

from enclave.kms.app_ca import issue_chain
from enclave.kms.audit import AUDIT, AuditLog, Case, Value
from enclave.kms.authorization import Authorizer, Decide, Decision
from enclave.kms.config import Core
from enclave.kms.key_store import KeyMaterial
from enclave.serving.prpc import WouldBlockError
from enclave.serving.rate_limit import RateLimited
from shared.attestation.app_id_register import APP_ID_PCR
from shared.attestation.identity import (
    boot_info,
    check_release_image,
    claimed_boot_info,
    info_of,
    is_app_id_verified,
)
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.attestation.verify import VerifiedAttestation
from shared.boot_info import AWS_NITRO_TPM, NITRO_ENCLAVE, SEV_SNP, BootInfo
from shared.chain.decision import Subject
from shared.chain.facts import Kind
from shared.chain.rules import ANY_GATEWAY, treat_nitro_as_up_to_date
from shared.errors import DstackError, InvalidEvidence, PolicyDenied, ProtocolError
from shared.keys.app_keys import (
    APP_ID_BYTES,
    derive_app_keys,
    env_crypt_key,
    env_public_key,
    sign_env_public_key,
)
from shared.keys.k256 import public_key
from shared.ratls.csr import check_signature, decode_csr
from shared.rpc import kms_pb2 as pb
from shared.rpc.codec import from_json

Verify = Callable[[bytes, bytes], VerifiedAttestation]
"""Verifies an envelope over exactly these 64 bytes of report data."""

Judged = Callable[[VerifiedAttestation], None]
"""Is told whose evidence a request holds, and may refuse it."""

MAX_API_VERSION = 1

RELEASE_GATES = {
    NITRO_ENCLAVE: "aws_nitro_enclave_key_release",
    AWS_NITRO_TPM: "aws_nitro_tpm_key_release",
    SEV_SNP: "sev_snp_key_release",
}
"""Platforms that get keys only if `[core]` opts in (spec kms section 2.2; drift #1303 for Nitro)."""


@contextmanager
def context(text: str) -> Iterator[None]:
    """Prefix the message of an error on its way out, as upstream's error chains read. The code stays."""
    try:
        yield
    except RateLimited:
        raise
    except DstackError as error:
        raise type(error)(error.code, f"{text}: {error.message}") from error


class KmsService:
    """One bootstrapped KMS.

    `own` is verified evidence about this very enclave, made at start over zero report data and kept for the
    life of the process (spec kms section 5.4). `policy` is what GetMeta tells of how strict this KMS is.
    `now` is the trusted clock: what is signed carries its time.
    """

    def __init__(
        self,
        *,
        core: Core,
        keys: KeyMaterial,
        authorizer: Authorizer,
        own: VerifiedAttestation,
        policy: pb.KmsPolicy,
        now: Callable[[], int],
        audit: AuditLog = AUDIT,
    ) -> None:
        self._audit = audit
        self._core = core
        self._keys = keys
        self._root = keys.root_keys()
        self._ca_cert = keys.root_ca_cert.public_bytes(Encoding.PEM).decode()
        self._authorizer = authorizer
        self._own = kms_boot_info(own, core)
        self._policy = policy
        self._now = now

    @property
    def auth_mode(self) -> str:
        """Who is believed: the mode of the authorizer."""
        return self._authorizer.mode

    @property
    def remembers_allows(self) -> bool:
        """Whether `get_app_key_promptly` may have an answer."""
        return self._authorizer.remembers

    def get_app_key(
        self, request: pb.GetAppKeyRequest, caller: VerifiedAttestation | None
    ) -> pb.AppKeyResponse:
        """Release an app's keys to its attested enclave.

        Checks, in order: API version; this KMS is allowed; evidence is present (it was verified and bound to
        the TLS key before dispatch); app id; policy, whose gateway may not be the wildcard; the image that
        was claimed is the measured one; the platform's release gate.
        """
        with Case(self.auth_mode, caller) as case:
            asked = cache(lambda: _app_boot_info(_present(caller), request.vm_config))
            decide = self._authorizer.for_one_request(lambda: Subject("app", asked()))
            return self._app_key(request, case, decide, asked)

    def get_app_key_promptly(
        self, request: pb.GetAppKeyRequest, caller: VerifiedAttestation | None
    ) -> pb.AppKeyResponse:
        """Do the same from remembered allows alone; raise `WouldBlockError` where policy has to be asked."""
        with Case(self.auth_mode, caller) as case:
            return self._app_key(
                request, case, self._recall, lambda: _app_boot_info(_present(caller), request.vm_config)
            )

    def _app_key(
        self, request: pb.GetAppKeyRequest, case: Case, decide: Decide, asked: Callable[[], BootInfo]
    ) -> pb.AppKeyResponse:
        _check_api_version(request.api_version)
        self._check_self(decide, case)
        with context("App not allowed"):
            verified = _present(case.verified)
            subject = case.subject = asked()
            decision = _admit(decide, case, subject)
            if decision.gateway_app_id == ANY_GATEWAY and self._authorizer.mode != "dev":
                raise PolicyDenied("kms.gateway.any", "gateway_app_id is any, which only dev mode may answer")
            check_release_image(verified, vm_config=request.vm_config)
            self._check_gate(subject.tee_variant)
            self._check_app_id(verified)
        keys = derive_app_keys(self._root, subject.app_id, subject.instance_id, epoch=request.key_epoch)
        epoch: dict[str, Value] = {"key_epoch": request.key_epoch}
        self._audit.record("kms.app_key.released", epoch | case.fields())
        return pb.AppKeyResponse(
            ca_cert=self._ca_cert,
            disk_crypt_key=keys.disk_crypt_key,
            env_crypt_key=keys.env_crypt_key,
            k256_key=keys.k256_key,
            k256_signature=keys.k256_signature,
            tproxy_app_id=decision.gateway_app_id,
            gateway_app_id=decision.gateway_app_id,
            os_image_hash=subject.os_image_hash,
            key_epoch=request.key_epoch,
        )

    def get_kms_key(
        self, request: pb.GetKmsKeyRequest, caller: VerifiedAttestation | None
    ) -> pb.KmsKeyResponse:
        """Release the root keys to another KMS.

        Checks, in order: this KMS is allowed; evidence is present (it was verified and bound to the TLS key
        before dispatch); policy, which must allow the caller as a KMS; image; the platform's release gate.
        A KMS needs no app id: its measurements are what the policy lists.
        """
        with Case(self.auth_mode, caller) as case:
            self._check_caller_kms(request, case)
            self._audit.record("kms.root_keys.released", case.fields())
            return pb.KmsKeyResponse(
                temp_ca_key=self._keys.temp_ca_pem().decode(),
                keys=[pb.KmsKeys(ca_key=self._keys.root_ca_pem().decode(), k256_key=self._keys.k256)],
            )

    def get_kms_key_without_token(
        self, request: pb.GetKmsKeyRequest, caller: VerifiedAttestation | None
    ) -> pb.KmsKeyResponse:
        """Do the same for the main listener, whose callers show evidence alone, where that is allowed."""
        if not self._core.onboard.public_key_handover:
            raise PolicyDenied("kms.handover.admin", "this listener hands over no root keys")
        return self.get_kms_key(request, caller)

    def _check_caller_kms(self, request: pb.GetKmsKeyRequest, case: Case) -> None:
        def caller() -> BootInfo:
            verified = _present(case.verified)
            return _as_kms(claimed_boot_info(verified, vm_config=request.vm_config), self._core)

        decide = self._authorizer.for_one_request(lambda: Subject("kms", caller()))
        self._check_self(decide, case)
        subject = case.subject = caller()
        decision = case.decision = decide("kms", subject)
        if not decision.is_allowed:
            raise PolicyDenied("kms.kms.denied", f"Boot denied: {decision.reason}")
        check_release_image(_present(case.verified), vm_config=request.vm_config)
        self._check_gate(subject.tee_variant)

    def get_app_env_encrypt_pub_key(self, request: pb.AppId) -> pb.PublicKeyResponse:
        """Tell anyone the key to encrypt an app's environment to, with this KMS's word that it is the app's.

        `signature` is for old clients and can be replayed for ever; `signature_v1` covers the trusted time.
        """
        with Case(self.auth_mode) as case:
            self._check_self(self._authorizer.authorize, case)
        if len(request.app_id) != APP_ID_BYTES:
            raise ProtocolError("kms.app_id.length", "app_id must be 20 bytes")
        public = env_public_key(env_crypt_key(self._root, request.app_id, epoch=request.key_epoch))
        timestamp = self._now()
        legacy, v1 = sign_env_public_key(
            self._root.signing_key, request.app_id, public, timestamp, epoch=request.key_epoch
        )
        return pb.PublicKeyResponse(public_key=public, signature=legacy, timestamp=timestamp, signature_v1=v1)

    def sign_cert(
        self, request: pb.SignCertRequest, verify: Verify, judged: Judged = lambda _verified: None
    ) -> pb.SignCertResponse:
        """Issue the certificate that an app's enclave asks for, whoever brings the request.

        Checks, in order: this KMS is allowed; the request's layout, its signature and its confirm word; the
        evidence in it, which must be over its key; app id; policy, asked about the app as it booted; image;
        the platform's release gate; the names and the validity asked for. `judged` is called before the
        policy is asked.
        """
        with Case(self.auth_mode) as case:
            return self._certificate(request, case, verify, judged)

    def _certificate(
        self, request: pb.SignCertRequest, case: Case, verify: Verify, judged: Judged
    ) -> pb.SignCertResponse:
        self._check_self(self._authorizer.authorize, case)
        csr = decode_csr(request.csr, request.api_version)
        check_signature(csr, request.csr, request.signature)
        case.evidence = csr.envelope
        with context("invalid quote"):
            verified = case.verified = verify(csr.envelope, report_data(RATLS_CERT, csr.pubkey))
        case.evidence = b""
        judged(verified)
        subject = case.subject = _app_boot_info(verified, request.vm_config, boot_time=True)
        _admit(self._authorizer.authorize, case, subject)
        info = info_of(check_release_image(verified, vm_config=request.vm_config))
        self._check_gate(subject.tee_variant)
        self._check_app_id(verified)
        lifetime = self._core.app_certificate_days * 86_400
        chain = issue_chain(self._keys, csr, verified, info, now=self._now(), lifetime=lifetime)
        asked: dict[str, Value] = {
            "serial_number": f"{chain[0].serial_number:x}",
            "names": list(csr.config.subject_alt_names),
        }
        self._audit.record("kms.app_certificate.issued", asked | case.fields())
        return pb.SignCertResponse(
            certificate_chain=[certificate.public_bytes(Encoding.PEM).decode() for certificate in chain]
        )

    def get_meta(self) -> pb.GetMetaResponse:
        """Describe this KMS: keys, contract facts, and how strict it is."""
        info = self._authorizer.info()
        development = self._authorizer.mode == "dev"
        meta = pb.GetMetaResponse(
            ca_cert=self._ca_cert,
            allow_any_upgrade=development,
            is_dev=development,
            k256_pubkey=public_key(self._keys.k256),
            policy=self._policy,
        )
        meta.policy.finalized_block = info.finalized_block
        if self._keys.bootstrap_info is not None:
            meta.bootstrap_info.CopyFrom(from_json(pb.BootstrapResponse, self._keys.bootstrap_info))
        if info.gateway_app_id is not None:
            meta.gateway_app_id = info.gateway_app_id
        if info.kms_contract_address is not None:
            meta.kms_contract_address = info.kms_contract_address
        if info.chain_id is not None:
            meta.chain_id = info.chain_id
        if info.app_implementation is not None:
            meta.app_auth_implementation = info.app_implementation
        return meta

    def get_temp_ca_cert(self) -> pb.GetTempCaCertResponse:
        """Hand out the temporary CA with its key. It authenticates nobody: only evidence does (trap 14)."""
        with Case(self.auth_mode) as case:
            self._check_self(self._authorizer.authorize, case)
        if self._core.enforce_self_authorization:
            self._check_gate(self._own.tee_variant)
        return pb.GetTempCaCertResponse(
            temp_ca_cert=self._keys.temp_ca_cert.public_bytes(Encoding.PEM).decode(),
            temp_ca_key=self._keys.temp_ca_pem().decode(),
            ca_cert=self._ca_cert,
        )

    def _recall(self, kind: Kind, subject: BootInfo) -> Decision:
        decision = self._authorizer.recall(kind, subject)
        if decision is None:
            raise WouldBlockError
        return decision

    def _check_self(self, decide: Decide, case: Case) -> None:
        """Refuse to serve when the contract no longer allows this KMS, so that a revocation stops it."""
        if not self._core.enforce_self_authorization:
            return
        with context("KMS self authorization failed"):
            check_self(case.noting(decide), self._own)
        case.decision = None  # the one on the caller is still to come

    def _check_gate(self, tee_variant: str) -> None:
        gate = RELEASE_GATES.get(tee_variant)
        if gate is not None and not getattr(self._core, gate):
            raise PolicyDenied(
                "kms.release.gate", f"key release to {tee_variant} is off: set core.{gate} = true to allow it"
            )

    def _check_app_id(self, verified: VerifiedAttestation) -> None:
        """Refuse an enclave whose app id is its own claim alone, where the measured config wants more."""
        if not self._core.nitro_app_id_pcr or verified.verdict.platform != NITRO_ENCLAVE:
            return
        if not is_app_id_verified(verified):
            raise PolicyDenied(
                "kms.app_id.unbound",
                f"PCR{APP_ID_PCR} does not hold this app id, and core.nitro_app_id_pcr wants it to: "
                "boot the enclave with enclave.init",
            )


def kms_boot_info(verified: VerifiedAttestation, core: Core) -> BootInfo:
    """Return what `isKmsAllowed` is asked about a KMS, this or another, after its image was checked."""
    return _as_kms(boot_info(verified), core)


def check_self(decide: Decide, own: BootInfo) -> None:
    """Raise `PolicyDenied("kms.self.denied")` unless the policy allows a KMS with this boot info."""
    decision = decide("kms", own)
    if not decision.is_allowed:
        raise PolicyDenied("kms.self.denied", f"KMS is not allowed: {decision.reason}")


def _as_kms(info: BootInfo, core: Core) -> BootInfo:
    """Apply the option for Nitro, which no app profits from."""
    return treat_nitro_as_up_to_date(info) if core.treat_nitro_as_up_to_date else info


def _app_boot_info(verified: VerifiedAttestation, vm_config: str, *, boot_time: bool = False) -> BootInfo:
    """Return what `isAppAllowed` is asked about; without an app id there is nothing to ask."""
    subject = claimed_boot_info(verified, vm_config=vm_config, boot_time=boot_time)
    if len(subject.app_id) != APP_ID_BYTES:
        raise InvalidEvidence("kms.app_id", "app_id must be 20 bytes")
    if not any(subject.app_id):
        raise InvalidEvidence("kms.app_id.zero", "app_id is zero")
    return subject


def _admit(decide: Decide, case: Case, subject: BootInfo) -> Decision:
    decision = case.decision = decide("app", subject)
    if not decision.is_allowed:
        raise PolicyDenied("kms.app.denied", f"Boot denied: {decision.reason}")
    return decision


def _check_api_version(version: int) -> None:
    if version > MAX_API_VERSION:
        raise ProtocolError("kms.api_version", f"Unsupported API version: {version}")


def _present(caller: VerifiedAttestation | None) -> VerifiedAttestation:
    if caller is None:
        raise InvalidEvidence("kms.no_attestation", "No attestation provided")
    return caller
