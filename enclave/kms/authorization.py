"""Who may have keys: the three modes of `core.auth_api.type`.

`proof` (default) believes nobody: the quorum names two blocks, a function fetches a proof bundle for them,
and `shared.chain.decision` re-decides from the bundle (DESIGN section 2). `webhook` is upstream's mode and
believes the server. `dev` allows everything and starts only in a simulated enclave. Doubt is refusal.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from enclave.kms.config import MAX_CHAIN_ID, Proof
from shared.boot_info import BootInfo
from shared.chain import decision as chain
from shared.chain.bundle import MAX_ANSWER_BYTES, ProofBundle, bundle_from_wire
from shared.chain.facts import Kind
from shared.chain.finality import FinalitySource
from shared.chain.header import BlockRef
from shared.errors import DstackError, PolicyDenied, ProtocolError, UnavailableError
from shared.net.fetch import HttpClient
from shared.net.proof_source import ProofRequest, ProofSource
from shared.net.response import Response
from shared.strict_json import decode_json
from shared.version import __version__

MAX_REMEMBERED_ALLOWS = 1024
"""Enough for every instance of a large fleet to restart within one minute; beyond it the oldest goes."""

USER_AGENT = {"user-agent": f"dstack-kms/{__version__}"}

INFO_MEMORY = 5
"""Seconds. GetMeta is anonymous and decides nothing; asking the chain for each call would let anyone spend
the endpoints' quota, and hold up all other anonymous calls while an endpoint does not answer."""

QUOTED_BODY = 512
"""Upstream quotes this much of a failed answer (spec kms section 6.1)."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One answer. `finalized_block`, its hash and `head_block` are None where no block stands behind it."""

    is_allowed: bool
    reason: str
    gateway_app_id: str
    finalized_block: int | None = None
    finalized_hash: bytes | None = None
    head_block: int | None = None


class ChainInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The contract facts of GetMeta; None where the mode has no contract."""

    gateway_app_id: str | None = None
    kms_contract_address: str | None = None
    chain_id: int | None = None
    app_implementation: str | None = None
    finalized_block: int = 0
    eth_rpc_url: str | None = None


Decide = Callable[[Kind, BootInfo], Decision]

Following = Callable[[], chain.Subject]
"""Tells a request's second question before its first is answered. Raises `DstackError` where it has none."""


class Authorizer(Protocol):
    """One mode. Both methods raise `DstackError` when no answer can be had; that is a refusal too."""

    mode: str
    remembers: bool
    """Whether `recall` ever has an answer: a caller that waits for one need not try otherwise."""

    def authorize(self, kind: Kind, boot_info: BootInfo) -> Decision:
        """Decide whether this workload may have keys."""
        ...

    def for_one_request(self, following: Following | None = None) -> Decide:
        """Return what decides the questions of one request, as `authorize` does: all at the same blocks.

        The one that `following` tells may be asked with the first; each has an answer or refusal of its own.
        """
        ...

    def recall(self, kind: Kind, boot_info: BootInfo) -> Decision | None:
        """Return an allow that is still good, without waiting; None when `authorize` has to be asked."""
        ...

    def info(self) -> ChainInfo:
        """Return the contract's facts."""
        ...


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook must answer; a string where a bool belongs is a malformed answer.

    `code` is our function's: why it could not give a proof.
    """

    is_allowed: bool = msgspec.field(name="isAllowed")
    gateway_app_id: str = msgspec.field(name="gatewayAppId")
    reason: str
    code: str = ""
    proof: Any = None


class _Answers(msgspec.Struct, frozen=True, kw_only=True):
    """What our function answers to several questions: one proof for all."""

    answers: tuple[_Answer, ...]
    code: str = ""
    proof: Any = None


class _Info(msgspec.Struct, frozen=True, kw_only=True):
    """What a webhook must tell of itself."""

    status: str
    kms_contract_addr: str = msgspec.field(name="kmsContractAddr")
    gateway_app_id: str = msgspec.field(name="gatewayAppId")
    chain_id: Annotated[int, msgspec.Meta(ge=0, le=MAX_CHAIN_ID)] = msgspec.field(name="chainId")
    app_implementation: str = msgspec.field(name="appImplementation")
    eth_rpc_url: str | None = msgspec.field(name="ethRpcUrl", default=None)
    proof: Any = None


AnswerT = TypeVar("AnswerT", _Answer, _Answers, _Info)


def _decoded(url: str, response: Response, kind: type[AnswerT]) -> AnswerT:
    url = _shown(url)
    if not 200 <= response.status < 300:
        quoted = response.body[:QUOTED_BODY].decode(errors="replace")
        raise UnavailableError("auth.api.status", f"auth api {url} returned {response.status}: {quoted}")
    try:
        value = decode_json(response.body, what="the answer", code="auth.api", max_bytes=MAX_ANSWER_BYTES)
        answer = msgspec.convert(value, kind)
        for text in _texts(answer):
            text.encode()  # a lone surrogate has no place in any encoding of ours
    except (msgspec.ValidationError, ProtocolError, UnicodeEncodeError) as error:
        raise ProtocolError("auth.api.malformed", f"failed to decode response from {url}: {error}") from error
    return answer


def _texts(answer: _Answer | _Answers | _Info) -> Iterator[str]:
    for field in msgspec.structs.astuple(answer):
        if isinstance(field, str):
            yield field
    if isinstance(answer, _Answers):
        for one in answer.answers:
            yield from _texts(one)


def _shown(url: str) -> str:
    """Return a URL without what may be secret in it: credentials, path and query."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def _ask(http: HttpClient, base: str, kind: Kind, boot_info: BootInfo, query: str = "") -> _Answer:
    return _post(http, base, kind, boot_info.to_wire(), query, _Answer)


def _ask_all(http: HttpClient, base: str, subjects: Sequence[chain.Subject], query: str) -> _Answers:
    questions = [{"kind": one.kind, "bootInfo": one.boot_info.to_wire()} for one in subjects]
    return _post(http, base, "all", {"questions": questions}, query, _Answers)


def _post(
    http: HttpClient, base: str, route: str, document: object, query: str, kind: type[AnswerT]
) -> AnswerT:
    url = f"{base.rstrip('/')}/bootAuth/{route}"
    headers = {"content-type": "application/json", **USER_AGENT}
    body = msgspec.json.encode(document)
    return _decoded(url, http.request("POST", url + query, body=body, headers=headers), kind)


def _ask_info(http: HttpClient, url: str) -> _Info:
    return _decoded(url, http.request("GET", url, headers=USER_AGENT), _Info)


def _proof_query(finalized: BlockRef, head: BlockRef) -> str:
    return f"?proof=1&packed=1&finalized=0x{finalized.hash.hex()}&head=0x{head.hash.hex()}"


class ProofAuthorizer:
    """Mode `proof`: two proven views, one refusal is enough.

    `raise_floor` is told the time of each accepted head, which a clock may then not fall behind. `sources`
    give the proofs that the authorize function does not.
    """

    mode = "proof"

    def __init__(
        self,
        settings: Proof,
        policy: chain.ChainPolicy,
        finality: FinalitySource,
        http: HttpClient,
        now: Callable[[], int],
        raise_floor: Callable[[int], None] = lambda _timestamp: None,
        sources: Sequence[ProofSource] = (),
    ) -> None:
        self.remembers = settings.allow_cache > 0
        self._settings = settings
        self._policy = policy
        self._finality = finality
        self._http = http
        self._now = now
        self._raise_floor = raise_floor
        self._sources = sources
        self._allows: OrderedDict[tuple[Kind, BootInfo], tuple[int, Decision]] = OrderedDict()
        self._lock = threading.Lock()
        self._info: tuple[int, ChainInfo | DstackError | None] = (0, None)
        self._info_lock = threading.Lock()

    def authorize(self, kind: Kind, boot_info: BootInfo) -> Decision:
        """Ask which two blocks count, the function for the bundle, and decide here.

        Raises what `FinalitySource.blocks` and `decide` raise, and `auth.api.status`, `auth.api.malformed`,
        `auth.proof.absent`, `auth.proof.disagrees`.
        """
        return self.for_one_request()(kind, boot_info)

    def for_one_request(self, following: Following | None = None) -> Decide:
        """See `Authorizer`: the blocks are named with the first question that needs them."""
        named: list[tuple[BlockRef, BlockRef]] = []
        found: dict[chain.Subject, Decision] = {}

        def decide(kind: Kind, boot_info: BootInfo) -> Decision:
            remembered = self.recall(kind, boot_info)
            if remembered is not None:
                return remembered
            subject = chain.Subject(kind, boot_info)
            if not named:
                named.append(self._finality.blocks())
                found.update(self._decide_together(subject, following, *named[0]))
            return found.get(subject) or self._decide((subject,), *named[0])[0]

        return decide

    def _decide_together(
        self, subject: chain.Subject, following: Following | None, finalized: BlockRef, head: BlockRef
    ) -> dict[chain.Subject, Decision]:
        """Return both answers, or none where the two questions have to be asked one by one.

        They have where there is no second one, where one of them is the reason that there is no proof for
        both, and where the function is an older one.
        """
        try:
            second = following() if following else subject
        except DstackError:
            return {}  # for which the request is refused, after its first answer
        if second == subject or self.recall(second.kind, second.boot_info) is not None:
            return {}
        try:
            decisions = self._decide((subject, second), finalized, head)
            return dict(zip((subject, second), decisions, strict=True))
        except DstackError as error:
            if isinstance(error, UnavailableError) and error.code != "auth.api.status":
                raise  # nobody answers: to ask again would take the time twice
            return {}

    def _decide(
        self, subjects: Sequence[chain.Subject], finalized: BlockRef, head: BlockRef
    ) -> list[Decision]:
        decisions = []
        for subject, proven, answer in self._prove(subjects, finalized, head):
            if proven.is_allowed and not answer.is_allowed:
                raise PolicyDenied(
                    "auth.proof.disagrees",
                    f"the authorize function refuses ({answer.reason or 'no reason'}) what its proof allows",
                )
            decision = Decision(
                is_allowed=proven.is_allowed,
                reason=proven.reason,
                gateway_app_id=proven.gateway_app_id,
                finalized_block=proven.finalized_number,
                finalized_hash=finalized.hash,
                head_block=head.number,
            )
            decisions.append(decision)
            if decision.is_allowed and self._settings.allow_cache:
                expires_at = min(proven.expires_at, self._now() + self._settings.allow_cache)
                self._remember((subject.kind, subject.boot_info), expires_at, decision)
        return decisions

    def info(self) -> ChainInfo:
        """Return the contract's facts as a bundle proves them, or why there are none; a few seconds old."""
        with self._info_lock:  # one question at a time: the others find its answer
            known_until, info = self._info
            if info is None or self._now() >= known_until:
                try:
                    info = self._prove_info()
                except DstackError as error:
                    info = type(error)(error.code, error.message)  # without its traceback: it is kept
                self._info = (self._now() + INFO_MEMORY, info)
        if isinstance(info, DstackError):
            raise type(info)(info.code, info.message)
        return info

    def _prove_info(self) -> ChainInfo:
        finalized, head = self._finality.blocks()
        answer = _ask_info(self._http, f"{self._settings.url.rstrip('/')}/{_proof_query(finalized, head)}")
        proven = chain.contract_facts(
            bundle_from_wire(answer.proof),
            chain=self._policy,
            finalized=finalized,
            head=head,
            now=self._now(),
        )
        return ChainInfo(
            gateway_app_id=proven.gateway_app_id,
            kms_contract_address="0x" + self._policy.kms_contract.hex(),
            chain_id=self._policy.chain_id,
            app_implementation="0x" + proven.app_implementation.hex(),
            finalized_block=proven.finalized_number,
            eth_rpc_url=_shown(self._settings.rpc_urls[0]),
        )

    def proven_roots(self) -> chain.KmsRoots:
        """Return the public root keys in `kmsInfo` as the chain proves them.

        Raises `UnavailableError("auth.proof.sources")` where no source can prove them, and what
        `FinalitySource.blocks` and `kms_roots` raise.
        """
        finalized, head = self._finality.blocks()
        return chain.kms_roots(
            self._gather(ProofRequest("roots"), finalized, head),
            chain=self._policy,
            finalized=finalized,
            head=head,
            now=self._now(),
        )

    def _gather(self, request: ProofRequest, finalized: BlockRef, head: BlockRef) -> ProofBundle:
        """Return the first bundle that any source gives: it is checked here, so the source may be anybody."""
        failure: DstackError | None = None
        for source in self._sources:
            try:
                return source.gather(request, finalized.hash, head.hash)
            except DstackError as error:
                failure = error
        why = failure.message if failure else "there is none"
        raise UnavailableError("auth.proof.sources", f"no endpoint proves the contract's state: {why}")

    def _prove(
        self, subjects: Sequence[chain.Subject], finalized: BlockRef, head: BlockRef
    ) -> list[tuple[chain.Subject, chain.Decision, _Answer]]:
        answers, proof, code = self._ask(subjects, _proof_query(finalized, head))
        if proof is None:
            why = answers[0].reason or "the authorize function answered without a proof"
            raise PolicyDenied("auth.proof.absent", f"{why} [{code}]" if code else why)
        proven = chain.decide_all(
            bundle_from_wire(proof),
            subjects=subjects,
            chain=self._policy,
            finalized=finalized,
            head=head,
            now=self._now(),
        )
        self._raise_floor(proven[0].head_timestamp)
        return list(zip(subjects, proven, answers, strict=True))

    def _ask(self, subjects: Sequence[chain.Subject], query: str) -> tuple[Sequence[_Answer], Any, str]:
        """Return an answer for each subject, the proof, and the code of why there is none."""
        url = self._settings.url
        if len(subjects) == 1:
            answer = _ask(self._http, url, subjects[0].kind, subjects[0].boot_info, query)
            return (answer,), answer.proof, answer.code
        answers = _ask_all(self._http, url, subjects, query)
        if len(answers.answers) != len(subjects):
            raise ProtocolError(
                "auth.api.malformed", f"{len(answers.answers)} answers to {len(subjects)} questions"
            )
        return answers.answers, answers.proof, answers.code

    def recall(self, kind: Kind, boot_info: BootInfo) -> Decision | None:
        """Return the allow of at most `allow_cache` seconds ago, while its blocks are fresh enough."""
        if not self._settings.allow_cache:
            return None
        key = (kind, boot_info)
        now = self._now()
        with self._lock:
            expires_at, decision = self._allows.get(key, (0, None))
            if now < expires_at:
                return decision
            self._allows.pop(key, None)
            return None

    def _remember(self, key: tuple[Kind, BootInfo], expires_at: int, decision: Decision) -> None:
        with self._lock:
            self._allows[key] = (expires_at, decision)
            while len(self._allows) > MAX_REMEMBERED_ALLOWS:
                self._allows.popitem(last=False)


class WebhookAuthorizer:
    """Mode `webhook`: upstream's. The server's word is believed, and GetMeta says so."""

    mode = "webhook"
    remembers = False

    def __init__(self, url: str, http: HttpClient) -> None:
        self._url = url
        self._http = http

    def authorize(self, kind: Kind, boot_info: BootInfo) -> Decision:
        """Return the server's answer. Raises `auth.api.status`, `auth.api.malformed` and `net.*`."""
        answer = _ask(self._http, self._url, kind, boot_info)
        return Decision(
            is_allowed=answer.is_allowed, reason=answer.reason, gateway_app_id=answer.gateway_app_id
        )

    def for_one_request(self, following: Following | None = None) -> Decide:
        """Return the same: the server knows of no blocks, and is asked one by one."""
        del following
        return self.authorize

    def recall(self, kind: Kind, boot_info: BootInfo) -> None:
        """Remember nothing: the server is asked each time."""
        del kind, boot_info

    def info(self) -> ChainInfo:
        """Return what the server says of itself."""
        answer = _ask_info(self._http, self._url)
        return ChainInfo(
            gateway_app_id=answer.gateway_app_id,
            kms_contract_address=answer.kms_contract_addr,
            chain_id=answer.chain_id,
            app_implementation=answer.app_implementation,
            eth_rpc_url=answer.eth_rpc_url,
        )


class DevAuthorizer:
    """Mode `dev`: allows everything. `assemble` refuses to make one outside a simulated enclave."""

    mode = "dev"
    remembers = True

    def __init__(self, gateway_app_id: str) -> None:
        self._gateway_app_id = gateway_app_id

    def authorize(self, kind: Kind, boot_info: BootInfo) -> Decision:
        """Allow."""
        del kind, boot_info
        return Decision(is_allowed=True, reason="", gateway_app_id=self._gateway_app_id)

    def for_one_request(self, following: Following | None = None) -> Decide:
        """Return the same."""
        del following
        return self.authorize

    def recall(self, kind: Kind, boot_info: BootInfo) -> Decision:
        """Allow."""
        return self.authorize(kind, boot_info)

    def info(self) -> ChainInfo:
        """Return no facts: there is no contract."""
        return ChainInfo()
