"""The demo's story: each arrow of the picture in DESIGN section 1, on the production code paths.

Two parents, as in a real deployment: the KMS runs in an enclave on one, the app in an enclave on another. All
that is simulated is the hardware: NSM documents are signed under a root made on the spot, and unix sockets
stand in for vsock.
"""

import secrets
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from cli.demo.answers import convert_answer, decode_answer
from cli.demo.deployment import Enclaves, Measured
from cli.demo.images import AppImage, KmsImage
from cli.demo.kms_operator import Audit, KmsOperator
from cli.demo.narration import Narrator
from cli.demo.processes import ProcessGroup
from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain, start_chain
from shared.attestation.identity import app_info
from shared.attestation.report_data import deploy_challenge
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import VerifiedAttestation, verify_attestation
from shared.errors import DstackError, ExitCode, InvalidEvidence, PolicyDenied, ProtocolError
from shared.hex import decode_hex
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient

KMS_CID, APP_CID, SECOND_APP_CID = 16, 17, 18
NITRO_DEVICE = bytes.fromhex("de7d1b721a1e0632b7cf04edf5032c8ecffa9f9a08492152b926f1a5a7e765d7")
"""sha256("i"): the device id that every Nitro enclave has at upstream's pin (spec kms trap 8)."""

REVOKED = "Compose hash not allowed"


class _Keys(msgspec.Struct, frozen=True):
    """Fingerprints, in the event of an agent that got its keys."""

    disk_crypt_key: str
    env_crypt_key: str
    k256_key: str


class _Evidence(msgspec.Struct, frozen=True):
    attestation: str


class Scenario:
    """One run. `work` is a private directory, `now` the wall clock in unix seconds."""

    def __init__(self, work: Path, narrator: Narrator, *, engine: str, now: Callable[[], int]) -> None:
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
            processes = stack.enter_context(ProcessGroup(self._work / "logs"))
            stack.callback(self._http.close)  # idle connections would hold up the forwarders' shutdown
            chain, governance = self._start_chain(stack)
            enclaves = self._start_authority(processes)
            authorize_url = self._start_authorize(enclaves, chain, governance)
            kms_image = self._build_kms_image(enclaves, chain, governance, authorize_url)
            kms_address = self._start_kms(enclaves, governance, kms_image, chain, authorize_url)
            operator = KmsOperator(self._http, kms_address, self._anchors, self._now)
            audit = self._bootstrap(enclaves, operator, governance, kms_image)
            app_image = self._build_app_image(enclaves, governance, kms_address, audit)
            evidence_url = self._start_app(enclaves, app_image, kms_address)
            self._challenge(evidence_url, app_image)
            self._leave_allow_list(enclaves, chain)
            self._revoke(enclaves, governance, app_image)

    # The chain and the function that reads it

    def _start_chain(self, stack: ExitStack) -> tuple[Chain, Governance]:
        with self.narrator.step("governance -> contracts") as step:
            chain = stack.enter_context(start_chain(self._engine))
            governance = Governance(chain.url, chain.accounts[0])
            deployed = governance.deploy()
            self.chain_engine = chain.engine
            why = f"{chain.fallback}, so " if chain.fallback else ""
            step.say(f"{why}DstackKms and DstackApp live on {chain.engine}, proxy 0x{deployed.kms.hex()}")
        return chain, governance

    def _start_authority(self, processes: ProcessGroup) -> Enclaves:
        with self.narrator.step("hardware (simulated)") as step:
            enclaves = Enclaves(processes, self._work)
            self._anchors = TrustAnchors.production().with_extra(enclaves.simulated_root)
            step.say("made a throw-away attestation root; real verifiers refuse everything signed under it")
        return enclaves

    def _start_authorize(self, enclaves: Enclaves, chain: Chain, governance: Governance) -> str:
        with self.narrator.step("functions -> chain") as step:
            url = enclaves.start_authorize(chain.url, governance.kms.address, chain.chain_id)
            step.say(
                f"the authorize function answers for chain {chain.chain_id}; its word alone releases nothing"
            )
        return url

    # The KMS

    def _build_kms_image(
        self, enclaves: Enclaves, chain: Chain, governance: Governance, authorize_url: str
    ) -> Measured:
        with self.narrator.step("operator -> KMS image") as step:
            image = KmsImage(
                chain_id=chain.chain_id,
                kms_contract=governance.kms.address,
                rpc_url=chain.url,
                authorize_url=authorize_url,
                simulated_root=enclaves.simulated_root,
            )
            measured = enclaves.build("kms-image", image.write)
            step.say(f"contract, chain, endpoints and anchors measured: 0x{measured.os_image_hash.hex()}")
        return measured

    def _start_kms(
        self, enclaves: Enclaves, governance: Governance, image: Measured, chain: Chain, authorize_url: str
    ) -> tuple[str, int]:
        with self.narrator.step("governance -> KMS allowed") as step:
            approvals = [
                governance.add_os_image(image.os_image_hash),
                governance.add_kms_mr(image.os_image_hash),
                governance.add_kms_device(NITRO_DEVICE),
            ]
            address = enclaves.start_kms(image, KMS_CID, (chain.url, authorize_url))
            final = governance.finalize(*approvals)
            step.say(f"image, measurement and device approved and final in block {final}; enclave is up")
        return address

    def _bootstrap(
        self, enclaves: Enclaves, operator: KmsOperator, governance: Governance, image: Measured
    ) -> Audit:
        with self.narrator.step("operator -> KMS bootstrap") as step:
            roots = operator.bootstrap("localhost", image.os_image_hash)
            governance.settle(
                governance.set_kms_info(
                    k256_pubkey=roots.k256_pubkey, ca_pubkey=roots.ca_pubkey, quote=roots.attestation
                )
            )
            operator.refuse_second_bootstrap("localhost")
            operator.finish()
            enclaves.kms.wait_for("kms.ready")
            step.say("root keys made in the enclave, their evidence verified; a second bootstrap was refused")
        with self.narrator.step("auditor -> KMS (RA-TLS)") as step:
            audit = operator.audit(roots, image.os_image_hash)
            step.say(
                f"certificate under the root, usage kms:rpc, fresh evidence of the approved image; "
                f"mode {audit.auth_mode}, clock {audit.clock_source}, quorum {audit.quorum}"
            )
        return audit

    # The app

    def _build_app_image(
        self, enclaves: Enclaves, governance: Governance, kms_address: tuple[str, int], audit: Audit
    ) -> Measured:
        with self.narrator.step("developer -> app image") as step:
            app_id = governance.deploy_app(device_id=NITRO_DEVICE)
            self.app_id = "0x" + app_id.hex()
            image = AppImage(
                app_id=self.app_id,
                kms_url=f"https://{kms_address[0]}:{kms_address[1]}",
                kms_root=audit.root_pem,
                k256_pubkey=audit.k256_pubkey,
                simulated_root=enclaves.simulated_root,
            )
            measured = enclaves.build("app-image", image.write)
            step.say(f"app id, KMS URL and root pin measured: 0x{measured.os_image_hash.hex()}")
        with self.narrator.step("governance -> app allowed") as step:
            final = governance.finalize(
                governance.add_os_image(measured.os_image_hash),
                governance.add_compose_hash(app_id, measured.os_image_hash),
            )
            step.say(f"OS_IMAGE_HASH and compose hash approved and final in block {final}")
        return measured

    def _start_app(self, enclaves: Enclaves, image: Measured, kms_address: tuple[str, int]) -> str:
        with self.narrator.step("app enclave -> KMS -> keys") as step:
            app, url = enclaves.start_app(image, APP_CID, kms_address)
            keys = convert_answer(app.wait_for("agent.keys"), _Keys, what="the agent's report of its keys")
            self.keys = msgspec.structs.asdict(keys)
            app.wait_for("agent.ready")
            step.say(
                "through both forwarders: KMS pinned and attested by the app, app attested by the KMS, "
                "decision proven in two blocks; keys are in the enclave's memory"
            )
        return url

    def _challenge(self, url: str, image: Measured) -> None:
        with self.narrator.step("deployer -> app evidence") as step:
            challenge = secrets.token_bytes(32)
            verified = self._ask_evidence(url, challenge)
            if app_info(verified).os_image_hash != image.os_image_hash:
                raise InvalidEvidence("demo.evidence.image", "the app runs another image than was planned")
            if not verified.verdict.simulated:
                raise InvalidEvidence("demo.evidence.simulated", "simulated evidence is not reported as such")
            step.say(
                "fresh evidence over a single-use challenge shows the planned image; reported as simulated"
            )

    def _ask_evidence(self, url: str, challenge: bytes) -> VerifiedAttestation:
        body = msgspec.json.encode({"challenge": challenge.hex()})
        response = self._http.request("POST", url, body=body, headers={"content-type": "application/json"})
        if response.status != 200:
            raise ProtocolError("demo.evidence.status", f"the evidence responder answered {response.status}")
        answer = decode_answer(response.body, _Evidence, what="the evidence responder's answer")
        return verify_attestation(
            decode_hex(answer.attestation, what="attestation"),
            now=self._now(),
            anchors=self._anchors,
            report_data=deploy_challenge(challenge, decode_hex(self.app_id, what="app_id", length=20)),
        )

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

    def _revoke(self, enclaves: Enclaves, governance: Governance, image: Measured) -> None:
        with self.narrator.step("governance -> revoke -> refused") as step:
            app_id = decode_hex(self.app_id, what="app_id", length=20)
            governance.settle(governance.remove_compose_hash(app_id, image.os_image_hash))
            again = enclaves.start_app_again(image, SECOND_APP_CID)
            code = again.wait_exit()
            refusal = next((e for e in again.events() if e.get("event") == "agent.failed"), {})
            text = str(refusal.get("message", ""))
            if code != ExitCode.REFUSED or REVOKED not in text:
                raise PolicyDenied(
                    "demo.revocation", f"expected a refusal with {REVOKED!r}, got {code}: {text}"
                )
            step.say(f"the same image asked again and was refused at once: {text}")
