"""A KMS for the apps of simulated enclaves: attested under their vendor's root, on a port of this machine."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding

from enclave.devices.attestor import NitroAttestor
from enclave.devices.nsm import Nsm
from enclave.kms.bootstrap import Bootstrapper
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.key_store import KeyMaterial, KeyStore
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.serving.attested_tls import build_server
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.peers import PeerVerifier
from functions.clouds.local_vendors import LocalVendors
from shared.attestation.trust import TrustAnchors
from shared.attestation.verify import verify_attestation
from shared.keys.k256 import public_key
from shared.rpc import kms_pb2 as pb
from tests.enclave.conftest import Policy, registers

HOST = "localhost"
CORE = Core(aws_nitro_enclave_key_release=True, nitro_app_id_pcr=True)


class AppKms:
    """A running KMS that allows every app. `vendor` is the root certificate that its apps believe (PEM)."""

    def __init__(self, port: int, keys: KeyMaterial, vendor: bytes) -> None:
        self.address = f"{HOST}:{port}"
        self.url = f"https://{HOST}:{port}"
        self.root_ca = keys.root_ca_cert.public_bytes(Encoding.PEM)
        self.vendor = vendor
        self._keys = keys

    def whitelist(self) -> str:
        """Return the kms-whitelist.json of an operator who believes its signature of keys."""
        return json.dumps({"trusted_signers": [public_key(self._keys.k256).hex()]})


@contextmanager
def app_kms(place: Path, vendors: LocalVendors) -> Iterator[AppKms]:
    """Serve until the block ends; the vendors' roots are made, and last."""
    vendors.make_nitro()
    authority = SimulatedAuthority.load(vendors.nitro)
    attestor = NitroAttestor(Nsm(SimulatedNsm(registers(1), authority)), None)
    anchors = TrustAnchors.production().with_extra(authority.root_pem, signer="nitro")
    store = KeyStore(place / "certs")
    random = Nsm(SimulatedNsm(registers(1), authority)).get_random
    maker = Bootstrapper(store=store, random=random, attestor=attestor, now=_now)
    maker.bootstrap(HOST, check_self=lambda: None, attest=True)
    keys = store.load()
    assert keys is not None
    own = verify_attestation(attestor.attest(bytes(64)), now=_now(), anchors=anchors, report_data=bytes(64))
    service = KmsService(
        core=CORE, keys=keys, authorizer=Policy(), own=own, policy=pb.KmsPolicy(auth_mode="proof"), now=_now
    )
    callers = CallerVerifier(temp_ca_der=keys.temp_ca_der(), verifier=PeerVerifier(anchors=anchors, now=_now))
    identity = RpcIdentity(keys, attestor, _now)
    app = main_app(service, callers, version="1", metrics=False)
    server = build_server(app, context_factory=identity.context)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield AppKms(listener.getsockname()[1], keys, authority.root_pem)
        finally:
            server.should_exit = True
            thread.join(10)
            assert not thread.is_alive()


def _now() -> int:
    return int(time.time())
