"""The key-release decision from a proof bundle: DESIGN section 2, step by step.

The caller still owes: that the evidence behind `boot_info` is verified, that a quorum of endpoints
of the right chain named `finalized` and `head`, that `now` comes from a clock the host cannot set, and that
the policy comes from measured bytes.
"""

from collections.abc import Sequence

import msgspec

from shared.boot_info import BootInfo
from shared.chain import code, rules
from shared.chain.bundle import ProofBundle, Witness
from shared.chain.facts import Deployed, Kind, Question, ViewFacts, read_views
from shared.chain.header import BlockRef, Header
from shared.errors import InvalidEvidence, PolicyDenied

# An allow is asked for again after this long, however fresh its blocks are.
MAX_CACHE_SECONDS = 60
# How far a header may lie ahead of the trusted clock: block producers and clocks drift, but not by minutes.
MAX_FUTURE_SECONDS = 300
# Ethereum finalises 13 to 19 minutes behind its head; an epoch or two without finality is not an attack.
DEFAULT_MAX_BLOCK_AGE = 1800
# Ten slots of the slowest chain we know of: a head that is older hides revocations.
DEFAULT_MAX_HEAD_AGE = 120

# What the DER of every SubjectPublicKeyInfo on P-256 begins with; the uncompressed point's x and y follow.
P256_SPKI_HEAD = bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d03010703420004")
P256_SPKI_BYTES = len(P256_SPKI_HEAD) + 64
_P256_P = 2**256 - 2**224 + 2**192 + 2**96 - 1
_P256_B = 0x5AC635D8AA3A93E7B3EBBD55769886BC651D06B0CC53B0F63BCE3C3E27D2604B


class ChainPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Which contract decides, which code it may run, and how old its blocks may be (seconds).

    `kms_contract` is 20 bytes. `chain_id` is enforced where blocks are named (`shared.net.quorum`).
    """

    chain_id: int
    kms_contract: bytes
    codes: code.CodeList
    max_block_age: int = DEFAULT_MAX_BLOCK_AGE
    max_head_age: int = DEFAULT_MAX_HEAD_AGE


class ContractFacts(msgspec.Struct, frozen=True):
    """Proven facts of the KMS contract that do not depend on who asks.

    A value on which the two views disagree is left empty: it is no longer, or not yet, the contract's word.
    `app_implementation` is 20 bytes, zero when unset. `expires_at` and `head_timestamp`, the time of the
    newest accepted header, are in unix seconds.
    """

    gateway_app_id: str
    app_implementation: bytes
    finalized_number: int
    expires_at: int
    head_timestamp: int = 0


class KmsSigner(msgspec.Struct, frozen=True):
    """The compressed k256 key (33 bytes) that the KMS contract publishes, in both views.

    `expires_at` is in unix seconds.
    """

    k256_pubkey: bytes
    finalized_number: int
    expires_at: int


class KmsRoots(msgspec.Struct, frozen=True):
    """The public root keys that the KMS contract publishes, in both views; None for one that it does not.

    `ca_pubkey` is the root CA's, SPKI DER of P-256 (91 bytes); the rest is as in `KmsSigner`.
    """

    ca_pubkey: bytes | None
    k256_pubkey: bytes | None
    finalized_number: int
    expires_at: int


class Subject(msgspec.Struct, frozen=True):
    """Whom a decision is about, and as what it asks."""

    kind: Kind
    boot_info: BootInfo


class Decision(msgspec.Struct, frozen=True):
    """The contracts' answer; `reason` is their exact string, empty when allowed.

    `expires_at` (unix seconds) is when an allow must be asked for again. The other fields are as in
    `ContractFacts`.
    """

    is_allowed: bool
    reason: str
    gateway_app_id: str
    app_implementation: bytes
    finalized_number: int
    expires_at: int
    head_timestamp: int = 0


def decide(
    bundle: ProofBundle,
    *,
    kind: Kind,
    boot_info: BootInfo,
    chain: ChainPolicy,
    finalized: BlockRef,
    head: BlockRef,
    now: int,
) -> Decision:
    """Decide whether the contracts allow `boot_info`, in the finalised block and at the head.

    A refusal by either view is a `Decision` that is not allowed; the head's reason comes first, because it is
    the newer word. Raises `InvalidEvidence("proof.*")` where the bundle does not support a decision, and
    `PolicyDenied("proof.zero_hash")` or `PolicyDenied("proof.gateway.any")` for what no contract can allow.
    """
    subject = Subject(kind, boot_info)
    return decide_all(bundle, subjects=(subject,), chain=chain, finalized=finalized, head=head, now=now)[0]


def decide_all(
    bundle: ProofBundle,
    *,
    subjects: Sequence[Subject],
    chain: ChainPolicy,
    finalized: BlockRef,
    head: BlockRef,
    now: int,
) -> list[Decision]:
    """Decide about several workloads from one bundle, which holds what all of them need and nothing else.

    Raises what `decide` raises about any of them.
    """
    for subject in subjects:
        _check_boot_info(subject.kind, subject.boot_info)
    views = _Views(bundle, chain, finalized, head, now, *((one.kind, one.boot_info) for one in subjects))
    facts = views.contract_facts()
    decisions = []
    for subject, (final_view, head_view) in zip(subjects, views.by_question, strict=True):
        reasons = [views.reason(view, subject) for view in (head_view, final_view)]
        reason = next((text for text in reasons if text != rules.ALLOWED), rules.ALLOWED)
        decisions.append(
            Decision(
                is_allowed=reason == rules.ALLOWED,
                reason=reason,
                gateway_app_id=facts.gateway_app_id,
                app_implementation=facts.app_implementation,
                finalized_number=facts.finalized_number,
                expires_at=facts.expires_at,
                head_timestamp=facts.head_timestamp,
            )
        )
    return decisions


def contract_facts(
    bundle: ProofBundle, *, chain: ChainPolicy, finalized: BlockRef, head: BlockRef, now: int
) -> ContractFacts:
    """Prove the KMS contract's facts alone, for GetMeta. Raises as `decide` does."""
    return _Views(bundle, chain, finalized, head, now, (None, None)).contract_facts()


def kms_signer(
    bundle: ProofBundle, *, chain: ChainPolicy, finalized: BlockRef, head: BlockRef, now: int
) -> KmsSigner:
    """Prove `kmsInfo.k256Pubkey`, whose signatures tell the keys of this KMS from anybody's.

    A new key counts when it is final, a replaced one no longer at once. Raises as `contract_facts` does
    without the gateway's wildcard, and `PolicyDenied`: `proof.signer.unsettled` where the views disagree,
    `proof.signer.unset`, `proof.signer.malformed`.
    """
    views = _Views(bundle, chain, finalized, head, now, ("signer", None))
    return views.kms_signer()


def kms_roots(
    bundle: ProofBundle, *, chain: ChainPolicy, finalized: BlockRef, head: BlockRef, now: int
) -> KmsRoots:
    """Prove `kmsInfo.caPubkey` and `kmsInfo.k256Pubkey`, which say whose keys a KMS has.

    A key that is not set is None; one that is set must be a key. Raises as `kms_signer` does, except for what
    is unset, and `PolicyDenied`: `proof.root_ca.unsettled`, `proof.root_ca.malformed`.
    """
    views = _Views(bundle, chain, finalized, head, now, ("roots", None))
    return views.kms_roots()


class _Views:
    """The two views of one bundle: fresh, of the blocks that were named, complete, and of known KMS code.

    `by_question` has the finalised and the newest view for each of the `questions`, of which there is one at
    least; `finalized` and `head` are those for the first.
    """

    def __init__(
        self,
        bundle: ProofBundle,
        chain: ChainPolicy,
        finalized: BlockRef,
        head: BlockRef,
        now: int,
        *questions: tuple[Question | None, BootInfo | None],
    ) -> None:
        self._codes = chain.codes
        witness = Witness(bundle)
        # 1. the headers are those that the quorum named, in order, neither old nor from the future
        headers = [
            _check_header(witness.header(ref.hash), ref, age, now)
            for ref, age in ((finalized, chain.max_block_age), (head, chain.max_head_age))
        ]
        if head.number < finalized.number:
            raise InvalidEvidence(
                "proof.header.order", f"head {head.number} is below finalised block {finalized.number}"
            )
        # 2. every fact of a view comes from that view's header
        finals, heads = (
            read_views(witness, header.state_root, kms_contract=chain.kms_contract, questions=questions)
            for header in headers
        )
        self.by_question = list(zip(finals, heads, strict=True))
        self.finalized, self.head = self.by_question[0]
        # 3. nothing else is in the bundle
        witness.check_all_used()
        # 4. the KMS contract runs code whose rules we know
        for view in (self.finalized, self.head):
            if not self._runs(code.KMS, view.kms):
                raise InvalidEvidence("proof.code.unknown", _unknown("the kms contract", code.KMS, view.kms))
        self._finalized_number = finalized.number
        self._head_timestamp = headers[1].timestamp
        self._expires_at = min(
            now + MAX_CACHE_SECONDS,
            headers[0].timestamp + chain.max_block_age,
            headers[1].timestamp + chain.max_head_age,
        )

    def reason(self, view: ViewFacts, subject: Subject) -> str:
        """Return why `view` refuses, or the empty string; an unknown app contract cannot be re-decided."""
        tcb_status = subject.boot_info.tcb_status
        if subject.kind == "kms":
            return rules.kms(view, tcb_status)
        reason = rules.kms_half_of_app(view)
        if reason != rules.ALLOWED or view.app is None:
            return reason
        if not self._runs(code.APP, view.app.deployed):
            raise InvalidEvidence(
                "proof.app.custom", _unknown("the app contract", code.APP, view.app.deployed)
            )
        return rules.app_half(view.app, tcb_status)

    def contract_facts(self) -> ContractFacts:
        """Return what both views say of the KMS contract; what they disagree on is left empty."""
        gateways = {self.finalized.gateway_app_id, self.head.gateway_app_id}
        if rules.ANY_GATEWAY in gateways:
            raise PolicyDenied(
                "proof.gateway.any", "the contract's gateway app id is the wildcard any, expected an app id"
            )
        implementations = {self.finalized.app_implementation, self.head.app_implementation}
        return ContractFacts(
            gateway_app_id=gateways.pop() if len(gateways) == 1 else "",
            app_implementation=implementations.pop() if len(implementations) == 1 else bytes(20),
            finalized_number=self._finalized_number,
            expires_at=self._expires_at,
            head_timestamp=self._head_timestamp,
        )

    def kms_signer(self) -> KmsSigner:
        """Return the key that both views name."""
        key = self._k256_pubkey()
        if not key:
            raise PolicyDenied("proof.signer.unset", "the contract publishes no k256Pubkey: call setKmsInfo")
        return KmsSigner(key, self._finalized_number, self._expires_at)

    def kms_roots(self) -> KmsRoots:
        """Return the keys that both views name."""
        ca_pubkey = self.head.ca_pubkey
        if ca_pubkey != self.finalized.ca_pubkey:
            raise PolicyDenied(
                "proof.root_ca.unsettled",
                "the contract's caPubkey has just changed: wait until the newest block is final",
            )
        if ca_pubkey and not _is_p256_spki(ca_pubkey):
            raise PolicyDenied(
                "proof.root_ca.malformed",
                f"the contract's caPubkey is 0x{ca_pubkey.hex()[:80]}, expected the spki of a p-256 key, "
                f"{P256_SPKI_BYTES} bytes of der",
            )
        return KmsRoots(
            ca_pubkey or None, self._k256_pubkey() or None, self._finalized_number, self._expires_at
        )

    def _k256_pubkey(self) -> bytes:
        key = self.head.k256_pubkey
        if key != self.finalized.k256_pubkey:
            raise PolicyDenied(
                "proof.signer.unsettled",
                "the contract's k256Pubkey has just changed: wait until the newest block is final",
            )
        if key and (len(key) != 33 or key[0] not in {2, 3}):
            raise PolicyDenied(
                "proof.signer.malformed",
                f"the contract's k256Pubkey is 0x{key.hex()[:80]}, expected a compressed key of 33 bytes",
            )
        return key

    def _runs(self, contract: str, deployed: Deployed) -> bool:
        """Whether a known proxy delegates to a known build of `contract`."""
        address, code_hash, there = deployed.implementation, deployed.code_hash_there, deployed.code
        if address is None or code_hash is None or there is None:
            return False
        return self._codes.is_proxy(deployed.code_hash) and self._codes.is_deployed(
            contract, there, code_hash, address
        )


def _check_header(header: Header, ref: BlockRef, max_age: int, now: int) -> Header:
    if header.number != ref.number:
        raise InvalidEvidence(
            "proof.header.mismatch", f"the header's number is {header.number}, expected {ref.number}"
        )
    age = now - header.timestamp
    if age > max_age:
        raise InvalidEvidence(
            "proof.header.stale", f"block {ref.number} is {age} seconds old, expected at most {max_age}"
        )
    if -age > MAX_FUTURE_SECONDS:
        raise InvalidEvidence(
            "proof.header.future",
            f"block {ref.number} is {-age} seconds in the future, expected at most {MAX_FUTURE_SECONDS}",
        )
    return header


def _check_boot_info(kind: Kind, boot_info: BootInfo) -> None:
    """Refuse identities that a contract could list by mistake, and lengths that have no slot.

    `isKmsAllowed` reads neither app id nor compose hash, so a KMS may lack them; it may not set them to zero.
    """
    needed = {"os_image_hash": 32, "device_id": 32}
    optional: dict[str, int] = {}
    if kind == "app":
        needed |= {"app_id": 20, "compose_hash": 32}
    else:
        needed |= {"mr_aggregated": 32}
        optional = {"app_id": 20, "compose_hash": 32}
    for name, length in (needed | optional).items():
        value: bytes = getattr(boot_info, name)
        if name in optional and not value:
            continue
        # an absent hash is a zero hash once it is padded to a word
        if name != "device_id" and not any(value):
            raise PolicyDenied("proof.zero_hash", f"{name} is zero or empty, which no contract may allow")
        if len(value) != length:
            raise InvalidEvidence(
                "proof.boot_info.length", f"{name} has {len(value)} bytes, expected {length}"
            )


def _is_p256_spki(der: bytes) -> bool:
    """Whether these bytes are the one SubjectPublicKeyInfo of an uncompressed point on P-256."""
    if len(der) != P256_SPKI_BYTES or not der.startswith(P256_SPKI_HEAD):
        return False
    x, y = (int.from_bytes(half, "big") for half in (der[-64:-32], der[-32:]))
    # the curve's equation, not a primitive: what uses the key checks it again
    return max(x, y) < _P256_P and (y * y - (x * x * x - 3 * x + _P256_B)) % _P256_P == 0


def _unknown(what: str, contract: str, deployed: Deployed) -> str:
    at = f"0x{deployed.implementation.hex()}" if deployed.implementation else "no implementation"
    return f"{what} (proxy code 0x{deployed.code_hash.hex()}, {at}) does not run a known build of {contract}"
