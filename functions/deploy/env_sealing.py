"""Encrypts a project's environment before it leaves the deployer's machine (spec deploy section 3).

The steps, in order: pin whose signature counts, ask a KMS for the app's key, check the signature, encrypt.
What comes out is ciphertext and a report; values go nowhere else. The service and the clouds only ever see
the ciphertext.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

import msgspec

from shared.chain.decision import ChainPolicy, kms_signer
from shared.errors import ConfigError, PolicyDenied, ProtocolError, UnavailableError
from shared.keys.app_keys import APP_ID_BYTES
from shared.keys.env_encryption import EnvAuthor, encrypt_env
from shared.keys.env_signature import (
    EnvKeyAnswer,
    TrustedSigners,
    VerifiedEnvKey,
    parse_env_key,
    parse_trusted_signers,
    verify_env_key,
)
from shared.net.dialer import Dialer
from shared.net.fetch import HttpClient
from shared.net.proof_source import ProofRequest, ProofSource
from shared.net.quorum import ChainQuorum

TIMEOUT: Final = 15.0
MAX_ANSWER: Final = 16 * 1024
_MAX_TEXT: Final = 200  # characters of a server's own words that an error repeats

Tls = Literal["verified", "unverified", "none"]


class FetchedKey(msgspec.Struct, frozen=True):
    """An answer that nobody has checked yet, the URL that gave it, and whether TLS said who that is."""

    answer: EnvKeyAnswer
    kms_url: str
    tls: Tls


class SealedEnv(msgspec.Struct, frozen=True, kw_only=True):
    """The bytes of `.encrypted-env` and how they came about; no secret is in here.

    `signature` is `v1` or `legacy`, `env_version` None without an author. `warnings` are sentences for
    people.
    """

    ciphertext: bytes
    names: tuple[str, ...]
    kms_url: str
    tls: Tls
    signer: bytes
    signature: Literal["v1", "legacy"]
    pinned_by: str
    env_version: int | None = None
    warnings: tuple[str, ...] = ()

    def report(self) -> dict[str, Any]:
        """Return what a command prints as JSON."""
        return {
            "names": list(self.names),
            "ciphertext_bytes": len(self.ciphertext),
            "kms_url": self.kms_url,
            "tls": self.tls,
            "signer": f"0x{self.signer.hex()}",
            "signature": self.signature,
            "pinned_by": self.pinned_by,
            "env_version": self.env_version,
            "warnings": list(self.warnings),
        }


class EnvKeySource:
    """Asks the first KMS of `kms_urls` that answers for the key to encrypt to.

    TLS is checked against `ca_roots` (PEM; None takes the system's). A KMS has a certificate of its own
    authority, so where `ca_roots` is None one that does not verify is asked again without: app id and key
    are public, and the signature tells whether the answer is true. With `ca_roots` there is no second try.
    """

    def __init__(
        self,
        dialer: Dialer,
        kms_urls: Sequence[str],
        ca_roots: bytes | None = None,
        timeout: float = TIMEOUT,
    ) -> None:
        self._kms_urls = tuple(kms_urls)
        self._verified = HttpClient(dialer, ca_roots, timeout, MAX_ANSWER)
        self._unverified = (
            HttpClient(dialer, None, timeout, MAX_ANSWER, authenticate=False) if ca_roots is None else None
        )

    def fetch(self, app_id: bytes, *, epoch: int = 0) -> FetchedKey:
        """Return the first answer about the key of an app (id of 20 bytes), of one of its key epochs.

        Raises `ConfigError("env.kms.none")` without a URL. Where all fail, the error is the first server's:
        `UnavailableError("env.kms.status")` for another status than 200, and what `HttpClient.request` and
        `parse_env_key` raise.
        """
        failure: UnavailableError | ProtocolError | None = None
        for url in self._kms_urls:
            try:
                return self._fetch(url, _question(app_id, epoch))
            except (UnavailableError, ProtocolError) as error:
                failure = failure or error
        if failure is None:
            raise ConfigError("env.kms.none", "no kms_urls are configured, and the environment needs a key")
        raise failure

    def close(self) -> None:
        """Close the connections that are kept for another question."""
        for client in (self._verified, self._unverified):
            if client is not None:
                client.close()

    def _fetch(self, kms_url: str, question: bytes) -> FetchedKey:
        is_tls = kms_url.lower().startswith("https:")
        if is_tls and self._unverified is not None:
            try:
                return self._ask(self._verified, kms_url, question, "verified")
            except UnavailableError as error:
                if error.code != "net.tls.refused":
                    raise
            return self._ask(self._unverified, kms_url, question, "unverified")
        return self._ask(self._verified, kms_url, question, "verified" if is_tls else "none")

    @staticmethod
    def _ask(client: HttpClient, kms_url: str, question: bytes, tls: Tls) -> FetchedKey:
        response = client.request(
            "POST", env_key_url(kms_url), question, {"Content-Type": "application/json"}
        )
        if response.status != 200:
            text = response.body[:_MAX_TEXT].decode("ascii", "replace").encode("ascii", "replace").decode()
            shown = "".join(char if char.isprintable() else " " for char in text) or "nothing"
            raise UnavailableError(
                "env.kms.status",
                f"{urlsplit(kms_url).hostname} answered http {response.status}, expected 200, "
                f"and said: {shown}",
            )
        return FetchedKey(parse_env_key(response.body), kms_url, tls)


def _question(app_id: bytes, epoch: int) -> bytes:
    return json.dumps({"app_id": app_id.hex()} | ({"key_epoch": epoch} if epoch else {})).encode()


def env_key_url(kms_url: str) -> str:
    """Return the method's URL for a base with or without `/prpc` and a trailing slash."""
    base = kms_url.rstrip("/")
    base = base if base.endswith("/prpc") else f"{base}/prpc"
    return f"{base}/GetAppEnvEncryptPubKey?json"


def signers_in_file(path: Path) -> TrustedSigners:
    """Read an operator's kms-whitelist.json; a file that is not there pins nobody.

    Raises what `parse_trusted_signers` raises, and `ConfigError("env.signer.file")` for an unreadable one.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return TrustedSigners(frozenset(), str(path))
    except OSError as error:
        raise ConfigError(
            "env.signer.file", f"cannot read {path}: {error.strerror or type(error).__name__}"
        ) from error
    return parse_trusted_signers(raw, source=str(path))


def signer_on_chain(
    quorum: ChainQuorum, source: ProofSource, policy: ChainPolicy, now: int
) -> TrustedSigners:
    """Return the one signer that the KMS contract publishes as `kmsInfo.k256Pubkey`, proven in two blocks.

    The quorum names the blocks; the proofs are checked here, so `source` may be anybody. Raises what
    `ChainQuorum.blocks`, `ProofSource.gather` and `kms_signer` raise.
    """
    finalized, head = quorum.blocks()
    bundle = source.gather(ProofRequest("signer"), finalized.hash, head.hash)
    signer = kms_signer(bundle, chain=policy, finalized=finalized, head=head, now=now)
    return TrustedSigners(
        frozenset({signer.k256_pubkey}),
        f"kmsInfo of 0x{policy.kms_contract.hex()} on chain {policy.chain_id}, "
        f"proven in blocks {finalized.number} and {head.number}",
    )


def seal_env(  # noqa: PLR0913 - each is one thing that the ciphertext depends on
    env: Mapping[str, str],
    *,
    app_id: bytes,
    source: EnvKeySource,
    signers: TrustedSigners,
    now: int,
    env_signer: bytes = b"",
    author: EnvAuthor | None = None,
    allow_legacy: bool = False,
    epoch: int = 0,
) -> SealedEnv:
    """Encrypt the variables for one app (id of 20 bytes), to a key that a pinned signer vouches for.

    `env_signer` (32 bytes, or empty) and `epoch` are what app-compose names; an author must have that signing
    key. Nothing is asked and nothing encrypted without a pin. Raises `PolicyDenied("env.signer.unpinned")`;
    `ConfigError`: `env_signer.author` where the guest would refuse what this author signs; and what the steps
    raise.
    """
    _check_author(author, env_signer, app_id)
    if not signers.keys:
        raise PolicyDenied(
            "env.signer.unpinned",
            f"no kms signer is pinned by {signers.source}: name one in a kms-whitelist.json, "
            "or a kms contract",
        )
    fetched = source.fetch(app_id, epoch=epoch)
    key = verify_env_key(
        fetched.answer, app_id=app_id, now=now, signers=signers, allow_legacy=allow_legacy, epoch=epoch
    )
    return SealedEnv(
        ciphertext=encrypt_env(env, key.public_key, author=author),
        names=tuple(sorted(env)),
        kms_url=fetched.kms_url,
        tls=fetched.tls,
        signer=key.signer,
        signature=key.signature,
        pinned_by=key.pinned_by,
        env_version=None if author is None else author.env_version,
        warnings=_warnings(fetched, key),
    )


def _check_author(author: EnvAuthor | None, env_signer: bytes, app_id: bytes) -> None:
    if len(app_id) != APP_ID_BYTES:
        raise ConfigError("env.app_id", f"app_id has {len(app_id)} bytes, expected {APP_ID_BYTES}")
    named = env_signer.hex() or "nobody"
    if author is None:
        if env_signer:
            raise ConfigError(
                "env_signer.author", f"app-compose names the env_signer {named}, and no signing key is given"
            )
        return
    if author.key.public_key != env_signer:
        raise ConfigError(
            "env_signer.author",
            f"the signing key is {author.key.public_key.hex()}, and app-compose names {named}",
        )
    if author.app_id != app_id:
        raise ConfigError(
            "env_signer.author", f"the author signs for app {author.app_id.hex()}, expected {app_id.hex()}"
        )


def _warnings(fetched: FetchedKey, key: VerifiedEnvKey) -> tuple[str, ...]:
    found = []
    if key.signature == "legacy":
        found.append("the kms signed its key without a time: an old answer could have been replayed")
    if fetched.tls != "verified":
        found.append("tls did not say who the kms is: its signature alone did")
    return tuple(found)
