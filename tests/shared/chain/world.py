"""A governed contract on a real chain, and the evidence about it: what the tests of decisions stand on."""

from collections.abc import Sequence
from typing import Any

import msgspec

from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from shared.boot_info import BootInfo
from shared.chain.bundle import ProofBundle
from shared.chain.code import CodeList, code_list
from shared.chain.decision import ChainPolicy, Decision, decide
from shared.chain.facts import Kind
from shared.chain.header import BlockRef, parse_header
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.net.json_rpc import Call, JsonRpc, data, fields, quantity
from shared.net.proof_source import ProofRequest, ProofSource

OS_IMAGE, COMPOSE, DEVICE, MR = b"o" * 32, b"c" * 32, b"d" * 32, b"m" * 32
GATEWAY = "aa" * 20


class Evidence(msgspec.Struct, frozen=True):
    """A bundle, the blocks it is for, and the moment of its head."""

    bundle: ProofBundle
    finalized: BlockRef
    head: BlockRef
    now: int


class World:
    """One deployed KMS contract with one app, on a chain that mines on each transaction."""

    def __init__(self, chain: Chain) -> None:
        self.rpc = JsonRpc(chain.url, HttpClient(DirectDialer(), timeout=30))
        self.owner = Governance(chain.url, chain.accounts[0])
        deployed = self.owner.deploy()
        self.kms, self.kms_implementation = deployed.kms, deployed.kms_implementation
        self.app_implementation = deployed.app_implementation
        self.app_id = self.owner.deploy_app(compose_hash=COMPOSE, device_id=DEVICE)
        self.owner.settle(
            self.owner.add_os_image(OS_IMAGE),
            self.owner.add_kms_mr(MR),
            self.owner.add_kms_device(DEVICE),
            self.owner.set_gateway_app_id(GATEWAY),
        )
        self.finalize()

    def finalize(self) -> None:
        """Mine until all that happened so far is final."""
        for _ in range(3):
            self.rpc.call("evm_mine")

    def boot(self, **changes: Any) -> BootInfo:
        """Return boot info that this world allows as an app and as a KMS, with changes."""
        values: dict[str, Any] = {
            "tee_variant": "dstack-nitro-enclave",
            "mr_aggregated": MR,
            "os_image_hash": OS_IMAGE,
            "mr_system": MR,
            "app_id": self.app_id,
            "compose_hash": COMPOSE,
            "instance_id": b"",
            "device_id": DEVICE,
            "key_provider_info": b"",
            "tcb_status": "UpToDate",
            "advisory_ids": (),
        }
        return BootInfo(**values | changes)

    def policy(self, *, codes: CodeList | None = None, **changes: Any) -> ChainPolicy:
        """Return the policy of this world's contract."""
        values: dict[str, Any] = {"chain_id": 31337, "kms_contract": self.kms}
        return ChainPolicy(codes=codes or code_list(), **values | changes)

    def blocks(self) -> tuple[BlockRef, BlockRef]:
        """Return the chain's finalised and newest block."""
        answers = self.rpc.batch(
            [("eth_getBlockByNumber", ["finalized", False]), ("eth_getBlockByNumber", ["latest", False])]
        )
        finalized, head = (
            BlockRef(
                quantity(fields(answer, what="block")["number"], what="number"),
                data(fields(answer, what="block")["hash"], what="hash"),
            )
            for answer in answers
        )
        return finalized, head

    def evidence(
        self,
        kind: Kind | None,
        boot_info: BootInfo | None,
        *,
        blocks: tuple[BlockRef, BlockRef] | None = None,
    ) -> Evidence:
        """Gather the proof that a function would hand over now."""
        finalized, head = blocks or self.blocks()
        bundle = ProofSource(self.rpc, self.kms).gather(
            ProofRequest(kind, boot_info), finalized.hash, head.hash
        )
        now = max(parse_header(raw).timestamp for raw in bundle.headers)
        return Evidence(bundle, finalized, head, now)

    def decide(
        self,
        kind: Kind,
        boot_info: BootInfo,
        evidence: Evidence | None = None,
        **changes: Any,
    ) -> Decision:
        """Decide about `boot_info` as the KMS would, on fresh evidence unless other is given."""
        shown = evidence or self.evidence(kind, boot_info)
        values: dict[str, Any] = {
            "chain": self.policy(),
            "finalized": shown.finalized,
            "head": shown.head,
            "now": shown.now,
        }
        return decide(
            shown.bundle,
            kind=kind,
            boot_info=boot_info,
            **values | changes,
        )


class Relay:
    """An endpoint that passes calls on and lets a test spoil the answers."""

    secure = False

    def __init__(self, world: World, host: str = "relay") -> None:
        self.host = host
        self._rpc = world.rpc
        self.batches = 0

    def spoil(self, method: str, params: Sequence[object], result: object) -> object:
        """Return what to answer instead of `result`."""
        del method, params
        return result

    def batch(self, calls: Sequence[Call]) -> list[object]:
        """Answer as the chain does, spoilt."""
        self.batches += 1
        results = self._rpc.batch(calls)
        return [self.spoil(*call, result) for call, result in zip(calls, results, strict=True)]
