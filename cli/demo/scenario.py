"""The demo's story: each arrow of the picture in DESIGN section 1, on the production code paths.

The KMS runs in one guest, the app in another. All that is simulated is the hardware: evidence is signed under
roots made on the spot, and on Nitro unix sockets stand in for vsock.
"""

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import msgspec

from cli.demo.answers import convert_answer, decode_answer
from cli.demo.app_answer import AppAnswer, check_answer
from cli.demo.deployment import Enclaves
from cli.demo.functions import start_authorize
from cli.demo.gcp_guests import GcpGuests
from cli.demo.governed import GovernedApp, WebhookFunction
from cli.demo.guests import Guests, Measured
from cli.demo.images import AppImage, KmsImage
from cli.demo.kms_operator import Audit, KmsOperator, KmsRoots
from cli.demo.narration import Narrator
from cli.demo.processes import ProcessGroup
from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, start_chain
from shared.attestation.envelope import Attestation, GcpTdxQuote, decode_envelope
from shared.attestation.report_data import deploy_challenge
from shared.errors import DstackError, ExitCode, InvalidEvidence, PolicyDenied, ProtocolError
from shared.hex import decode_hex
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient

Kind = Literal["nitro", "gcp"]

REVOKED = "Compose hash not allowed"
BLOCK_SECONDS = 0.2
"""Of anvil's chain: whoever looks on waits for a dozen blocks to become final."""

_GUEST: dict[Kind, str] = {"nitro": "enclave", "gcp": "guest"}


class _Keys(msgspec.Struct, frozen=True):
    """Fingerprints, in the event of an agent that got its keys."""

    disk_crypt_key: str
    env_crypt_key: str
    k256_key: str


class _Evidence(msgspec.Struct, frozen=True):
    attestation: str


class Scenario:
    """One run. `work` is a private directory, `now` the wall clock in unix seconds.

    `stopping` is called when the story is over, before what it started is stopped.
    """

    def __init__(
        self,
        work: Path,
        narrator: Narrator,
        *,
        engine: str,
        now: Callable[[], int],
        kind: Kind = "nitro",
        stopping: Callable[[], object] = lambda: None,
    ) -> None:
        self.kind = kind
        self._stopping = stopping
        self.chain_engine = ""
        self.app_id = ""
        self.keys: dict[str, str] = {}
        self._work = work
        self.narrator = narrator
        self._engine = engine
        self._now = now
        self._http = HttpClient(DirectDialer())

    def run(self) -> None:
        """Tell the story, from the first block to the refusal, and stop on the way out what was started."""
        with ExitStack() as stack:
            try:
                self._tell(stack)
            finally:
                self._stopping()

    def _tell(self, stack: ExitStack) -> None:
        processes = stack.enter_context(ProcessGroup(self._work / "logs"))
        stack.callback(self._http.close)  # idle connections would hold up the forwarders' shutdown
        chain, governance = self._start_chain(stack)
        guests = self._start_hardware(processes)
        authorize_url = self._start_authorize(processes, chain, governance)
        function = self._start_governance(processes, chain, governance)
        kms = self._build_kms(guests, chain, governance, authorize_url)
        kms_address = self._start_kms(guests, governance, kms, chain, authorize_url)
        operator = KmsOperator(self._http, kms_address, guests.verifier)
        roots = self._bootstrap(guests, operator, governance, kms)
        audit = self._audit(operator, roots, kms)
        app = self._build_app(guests, governance, kms_address, audit)
        governed = self._start_app(guests, app, kms_address, function)
        evidence = self._challenge(guests, app)
        self._use_sdk(processes, guests, app, audit)
        match guests:
            case Enclaves():
                self._leave_allow_list(guests, chain)
            case _:
                self._mix_machines(guests, evidence, roots)
        self._stop_by_webhook(function, governed, governance, app)
        self._revoke(guests, app)

    # The chain and the function that reads it

    def _start_chain(self, stack: ExitStack) -> tuple[Chain, Governance]:
        with self.narrator.step("governance -> contracts") as step:
            chain = stack.enter_context(start_chain(self._engine, block_time=BLOCK_SECONDS))
            governance = Governance(chain.url, chain.accounts[0])
            deployed = governance.deploy()
            self.chain_engine = chain.engine
            why = f"{chain.fallback}, so " if chain.fallback else ""
            step.say(f"{why}DstackKms and DstackApp live on {chain.engine}, proxy 0x{deployed.kms.hex()}")
        return chain, governance

    def _start_hardware(self, processes: ProcessGroup) -> Guests:
        with self.narrator.step("hardware (simulated)") as step:
            make = GcpGuests if self.kind == "gcp" else Enclaves
            guests = make(processes, self._work, self._now)
            step.say(f"{guests.describe()}; real verifiers refuse everything signed under them")
        return guests

    def _start_authorize(self, processes: ProcessGroup, chain: Chain, governance: Governance) -> str:
        with self.narrator.step("functions -> chain") as step:
            url = start_authorize(
                processes, rpc_url=chain.url, kms_contract=governance.kms.address, chain_id=chain.chain_id
            )
            step.say(
                f"the authorize function answers for chain {chain.chain_id}; its word alone releases nothing"
            )
        return url

    def _start_governance(
        self, processes: ProcessGroup, chain: Chain, governance: Governance
    ) -> WebhookFunction:
        """Start what waits for the contracts' events; it is ready long before there is one that matters."""
        return WebhookFunction(
            processes,
            self._work,
            rpc_url=chain.url,
            kms_contract=governance.kms.address,
            chain_id=chain.chain_id,
        )

    # The KMS

    def _build_kms(
        self, guests: Guests, chain: Chain, governance: Governance, authorize_url: str
    ) -> Measured:
        with self.narrator.step("operator -> KMS image") as step:
            image = KmsImage(
                chain_id=chain.chain_id,
                kms_contract=governance.kms.address,
                rpc_url=chain.url,
                authorize_url=authorize_url,
                roots=guests.roots,
            )
            measured = guests.build_kms(image)
            step.say(f"contract, chain, endpoints and anchors measured: {_hashes(measured)}")
        return measured

    def _start_kms(
        self, guests: Guests, governance: Governance, kms: Measured, chain: Chain, authorize_url: str
    ) -> tuple[str, int]:
        with self.narrator.step("governance -> KMS allowed") as step:
            approvals = [
                governance.add_os_image(kms.os_image_hash),
                governance.add_kms_mr(kms.mr_aggregated),
                governance.add_kms_device(guests.device_id),
            ]
            address = guests.start_kms(kms, (chain.url, authorize_url))
            final = governance.finalize(*approvals)
            up = f"guest is up, vTPM: {guests.vtpm()}" if isinstance(guests, GcpGuests) else "enclave is up"
            step.say(f"image, measurement and device approved and final in block {final}; {up}")
        return address

    def _bootstrap(
        self, guests: Guests, operator: KmsOperator, governance: Governance, kms: Measured
    ) -> KmsRoots:
        with self.narrator.step("operator -> KMS bootstrap") as step:
            roots = operator.bootstrap("localhost", kms)
            governance.settle(
                governance.set_kms_info(
                    k256_pubkey=roots.k256_pubkey, ca_pubkey=roots.ca_pubkey, quote=roots.attestation
                )
            )
            operator.refuse_second_bootstrap("localhost")
            operator.finish()
            guests.kms.wait_for("kms.ready")
            step.say("root keys made in the guest, their evidence verified; a second bootstrap was refused")
        return roots

    def _audit(self, operator: KmsOperator, roots: KmsRoots, kms: Measured) -> Audit:
        with self.narrator.step("auditor -> KMS (RA-TLS)") as step:
            audit = operator.audit(roots, kms)
            step.say(
                f"certificate under the root, usage kms:rpc, fresh evidence of the approved image; "
                f"mode {audit.auth_mode}, clock {audit.clock_source}, quorum {audit.quorum}"
            )
        return audit

    # The app

    def _build_app(
        self, guests: Guests, governance: Governance, kms_address: tuple[str, int], audit: Audit
    ) -> Measured:
        with self.narrator.step("developer -> app image") as step:
            # a guest with a TCB status can be held to it
            tcb = self.kind == "gcp"
            app_id = governance.deploy_app(device_id=guests.device_id, require_tcb_up_to_date=tcb)
            self.app_id = "0x" + app_id.hex()
            image = AppImage(
                app_id=self.app_id,
                kms_url=f"https://{kms_address[0]}:{kms_address[1]}",
                kms_root=audit.root_pem,
                k256_pubkey=audit.k256_pubkey,
                roots=guests.roots,
            )
            measured = guests.build_app(image)
            step.say(f"app id, KMS URL and root pin measured: {_hashes(measured)}")
        with self.narrator.step("governance -> app allowed") as step:
            final = governance.finalize(
                governance.add_os_image(measured.os_image_hash),
                governance.add_compose_hash(app_id, measured.compose_hash),
            )
            step.say(f"OS_IMAGE_HASH and compose hash approved and final in block {final}")
        return measured

    def _start_app(
        self, guests: Guests, app: Measured, kms_address: tuple[str, int], function: WebhookFunction
    ) -> GovernedApp:
        with self.narrator.step(f"app {_GUEST[self.kind]} -> KMS -> keys") as step:
            agent = guests.start_app(app, kms_address)
            keys = convert_answer(agent.wait_for("agent.keys"), _Keys, what="the agent's report of its keys")
            self.keys = msgspec.structs.asdict(keys)
            agent.wait_for("agent.ready")
            way = "with fresh collateral" if self.kind == "gcp" else "through both forwarders"
            step.say(
                f"{way}: KMS pinned and attested by the app, app attested by the KMS, "
                f"decision proven in two blocks; keys are in the {_GUEST[self.kind]}'s memory"
            )
        return GovernedApp(
            function,
            agent,
            app,
            platform=self.kind,
            app_id=self._app_id_bytes(),
            device_id=guests.device_id,
            now=self._now,
        )

    def _challenge(self, guests: Guests, app: Measured) -> bytes:
        with self.narrator.step("deployer -> app evidence") as step:
            challenge = secrets.token_bytes(32)
            envelope = self._ask_evidence(guests.evidence_url(), challenge)
            verified = guests.verifier.verify_workload(
                envelope,
                deploy_challenge(challenge, self._app_id_bytes()),
                os_image_hash=app.os_image_hash,
                compose_hash=app.compose_hash,
                code="demo.evidence.image",
            )
            if not verified.verdict.simulated:
                raise InvalidEvidence("demo.evidence.simulated", "simulated evidence is not reported as such")
            step.say(
                "fresh evidence over a single-use challenge shows the planned image; reported as simulated"
            )
        return envelope

    def _use_sdk(self, processes: ProcessGroup, guests: Guests, app: Measured, audit: Audit) -> None:
        with self.narrator.step(f"app -> SDK -> {_GUEST[self.kind]}'s agent") as step:
            challenge = secrets.token_bytes(32)
            process = processes.python(
                "sdk-app",
                "cli.demo.sdk_app",
                challenge.hex(),
                environment={"DSTACK_SIMULATOR_ENDPOINT": str(guests.app_socket())},
            )
            answer = convert_answer(process.wait_for("app.answer"), AppAnswer, what="the app's answer")
            check_answer(
                answer,
                challenge=challenge,
                app_id=self._app_id_bytes(),
                planned=app,
                audit=audit,
                verifier=guests.verifier,
            )
            step.say(
                "with dstack-sdk from PyPI the app signed a challenge, attested the key, got a certificate; "
                "the KMS vouches for key and certificate, evidence of the planned image names the key"
            )

    def _ask_evidence(self, url: str, challenge: bytes) -> bytes:
        body = msgspec.json.encode({"challenge": challenge.hex()})
        response = self._http.request("POST", url, body=body, headers={"content-type": "application/json"})
        if response.status != 200:
            raise ProtocolError("demo.evidence.status", f"the evidence responder answered {response.status}")
        answer = decode_answer(response.body, _Evidence, what="the evidence responder's answer")
        return decode_hex(answer.attestation, what="attestation")

    def _app_id_bytes(self) -> bytes:
        return decode_hex(self.app_id, what="app_id", length=20)

    # What must not work

    def _leave_allow_list(self, enclaves: Enclaves, chain: Chain) -> None:
        with self.narrator.step("app enclave -> elsewhere") as step:
            try:
                enclaves.dial_from_app(chain.url)
            except DstackError as error:
                if error.code != "net.proxy.denied":
                    raise
                step.say("refused: the parent's forwarder reaches the KMS and nothing else")
            else:
                raise PolicyDenied("demo.forwarder.open", "the forwarder let the app reach the chain")

    def _mix_machines(self, guests: Guests, evidence: bytes, roots: KmsRoots) -> None:
        with self.narrator.step("two machines posing as one") as step:
            mixed = with_vtpm_of(decode_envelope(evidence), decode_envelope(roots.attestation))
            try:
                guests.verifier.verify(mixed, mixed.report_data)
            except InvalidEvidence as error:
                if error.code != "gcp.binding":
                    raise
                step.say(f"the app's TDX quote beside the KMS's vTPM quote is refused [{error.code}]")
            else:
                raise PolicyDenied("demo.binding.open", "a quote of another machine's vTPM was accepted")

    def _stop_by_webhook(
        self, function: WebhookFunction, governed: GovernedApp, governance: Governance, app: Measured
    ) -> None:
        with self.narrator.step("governance -> webhook -> app stopped") as step:
            [receipt] = governance.settle(
                governance.remove_compose_hash(self._app_id_bytes(), app.compose_hash)
            )
            function.deliver(self._http, receipt, self._now())
            stopped, polls = governed.poll_until_stopped()
            held = stopped.quarantine
            if held is None or held.reason != REVOKED:
                raise PolicyDenied("demo.governance.reason", f"expected {REVOKED!r}, got {held}")
            step.say(
                "the event came by a signed webhook (a forged one was refused); the governance function read "
                f"the contract at block {held.block_number}, and poll {polls} of the runner stopped the "
                f"running app: {held.reason}"
            )

    def _revoke(self, guests: Guests, app: Measured) -> None:
        with self.narrator.step("governance -> revoke -> refused") as step:
            again = guests.start_app_again(app)
            code = again.wait_exit()
            # an enclave's init asks for its keys, on Google Cloud the agent does
            failed = ("init.failed", "agent.failed")
            refusal = next((event for event in again.events() if event.get("event") in failed), {})
            text = str(refusal.get("message", ""))
            if code != ExitCode.REFUSED or REVOKED not in text:
                raise PolicyDenied(
                    "demo.revocation", f"expected a refusal with {REVOKED!r}, got {code}: {text}"
                )
            step.say(f"the same image asked again and was refused at once: {text}")


def with_vtpm_of(attestation: Attestation, other: Attestation) -> Attestation:
    """Return evidence with another's vTPM quote. Raises `InvalidEvidence("demo.evidence.kind")`."""
    match attestation.quote, other.quote:
        case GcpTdxQuote(tdx=tdx), GcpTdxQuote(tpm=tpm):
            return msgspec.structs.replace(attestation, quote=GcpTdxQuote(tdx, tpm))
        case _:
            raise InvalidEvidence("demo.evidence.kind", "evidence has no vtpm quote")


def _hashes(measured: Measured) -> str:
    if measured.compose_hash == measured.os_image_hash:
        return (
            f"OS_IMAGE_HASH 0x{measured.os_image_hash.hex()} of {measured.image.name}, "
            f"built from an OCI layout by {measured.builder}"
        )
    return f"compose hash 0x{measured.compose_hash.hex()}"
