"""What a KMS contract publishes and decides, gathered from endpoints and proven at the blocks of a quorum."""

from collections.abc import Sequence

from cli.chain_quorum import chain_quorum
from cli.kms_audit import Contract, Proven, attempt
from shared.boot_info import BootInfo
from shared.chain.bundle import ProofBundle
from shared.chain.code import code_list
from shared.chain.decision import ChainPolicy, Decision, KmsRoots, decide, kms_roots
from shared.chain.header import BlockRef
from shared.errors import DstackError, UnavailableError
from shared.net.proof_source import ProofRequest, ProofSource


class Prover:
    """Asks about one contract. Raises `ConfigError`: `rpc.url.invalid`, `quorum.config.*`."""

    def __init__(self, contract: Contract, rpc_urls: Sequence[str]) -> None:
        self.contract = contract
        self._quorum, endpoints = chain_quorum(rpc_urls, contract.chain_id)
        self._sources = [ProofSource(endpoint, contract.address) for endpoint in endpoints]
        self._policy = ChainPolicy(
            chain_id=contract.chain_id, kms_contract=contract.address, codes=code_list()
        )

    def prove(self, subject: BootInfo | DstackError, *, now: int) -> Proven:
        """Return the contract's root keys and its decision on `subject`, at `now` (unix seconds).

        An endpoint that cannot prove is passed over for the next.
        """
        blocks = attempt(self._quorum.blocks)
        if isinstance(blocks, DstackError):
            return Proven(blocks, blocks)
        finalized, head = blocks

        def roots() -> KmsRoots:
            bundle = _gather(self._sources, ProofRequest("roots"), finalized, head)
            return kms_roots(bundle, chain=self._policy, finalized=finalized, head=head, now=now)

        def decision() -> Decision:
            if isinstance(subject, DstackError):
                raise subject
            return decide(
                _gather(self._sources, ProofRequest("kms", subject), finalized, head),
                kind="kms",
                boot_info=subject,
                chain=self._policy,
                finalized=finalized,
                head=head,
                now=now,
            )

        return Proven(attempt(roots), attempt(decision))


def _gather(
    sources: Sequence[ProofSource], request: ProofRequest, finalized: BlockRef, head: BlockRef
) -> ProofBundle:
    """Return the first bundle that a source gives, else raise the last one's error."""
    failure: DstackError = UnavailableError("proof.provider.cannot_prove", "no endpoint was asked for proofs")
    for source in sources:
        try:
            return source.gather(request, finalized.hash, head.hash)
        except DstackError as error:
            failure = error
    raise failure
