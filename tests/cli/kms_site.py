"""A whole simulated KMS on a chain, and an impostor: what an auditor may find at a URL."""

import contextlib
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from cli.demo.deployment import Enclaves
from cli.demo.functions import start_authorize
from cli.demo.gcp_guests import GcpGuests
from cli.demo.guests import Guests, Measured
from cli.demo.images import KmsImage
from cli.demo.kms_operator import KmsOperator, KmsRoots
from cli.demo.processes import ProcessGroup
from cli.devchain.governance import Governance
from cli.devchain.launcher import Chain
from shared.net.dialer import DirectDialer
from shared.net.fetch import HttpClient
from shared.ratls.certificates import self_signed_ca
from shared.ratls.tls import server_context

PATIENCE = 30.0


class KmsSite(NamedTuple):
    """A running KMS that its contract allows, and the keys that it made."""

    governance: Governance
    guests: Guests
    measured: Measured
    roots: KmsRoots
    url: str
    trust: tuple[str, ...]
    """The options with which its evidence verifies."""
    chain: Chain

    def contract(self, address: str | None = None) -> tuple[str, ...]:
        """Return the options of its contract, or of another on the same chain."""
        return (
            *("--kms-contract", address or self.governance.kms.address),
            *("--chain-id", str(self.chain.chain_id), "--rpc", self.chain.url),
        )

    def publish(self, roots: KmsRoots) -> None:
        """Have the contract publish these keys, and wait until that is final."""
        self.governance.finalize(
            self.governance.set_kms_info(
                k256_pubkey=roots.k256_pubkey, ca_pubkey=roots.ca_pubkey, quote=roots.attestation
            )
        )


@contextlib.contextmanager
def kms_site(chain: Chain, kind: str, account: int) -> Iterator[KmsSite]:
    """Run a KMS, `nitro` or `gcp`, until it serves. `account` of the chain governs it, and nobody else."""
    with (
        tempfile.TemporaryDirectory(prefix="vk-") as directory,
        ProcessGroup(Path(directory) / "logs") as processes,
        contextlib.closing(HttpClient(DirectDialer())) as http,
    ):
        work = Path(directory)
        governance = Governance(chain.url, chain.accounts[account])
        governance.deploy()
        address = governance.kms.address
        make = GcpGuests if kind == "gcp" else Enclaves
        guests: Guests = make(processes, work, lambda: int(time.time()))
        authorize = start_authorize(
            processes, rpc_url=chain.url, kms_contract=address, chain_id=chain.chain_id
        )
        measured = guests.build_kms(
            KmsImage(
                chain_id=chain.chain_id,
                kms_contract=address,
                rpc_url=chain.url,
                authorize_url=authorize,
                roots=guests.roots,
            )
        )
        approvals = [
            governance.add_os_image(measured.os_image_hash),
            governance.add_kms_mr(measured.mr_aggregated),
            governance.add_kms_device(guests.device_id),
        ]
        host, port = guests.start_kms(measured, (chain.url, authorize))
        governance.finalize(*approvals)
        operator = KmsOperator(http, (host, port), guests.verifier)
        roots = operator.bootstrap("localhost", measured)
        operator.finish()
        guests.kms.wait_for("kms.ready")
        trust: tuple[str, ...] = ()
        for name, pem in guests.roots.pems.items():
            (work / f"{name}.pem").write_bytes(pem)
            trust += ("--trust-anchor", str(work / f"{name}.pem"))
        if guests.roots.pccs_url:
            trust += ("--pccs", guests.roots.pccs_url)
        site = KmsSite(governance, guests, measured, roots, f"https://{host}:{port}", trust, chain)
        site.publish(roots)
        yield site


class Impostor:
    """A TLS server that shows one certificate, and keeps what it was sent after the handshake."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, leaf: x509.Certificate, now: int) -> None:
        ca_key = ec.generate_private_key(ec.SECP256R1())
        client_ca = self_signed_ca(ca_key, "Dstack Client Temp CA", 0, now - 60, now + 3600)
        self._context = server_context(key=key, chain=[leaf], client_ca=client_ca)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE)
        self.url = f"https://localhost:{self._listener.getsockname()[1]}"
        self.received = b""
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._listener.close()
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _serve(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.settimeout(None)
        with sock:
            tls = SSL.Connection(self._context, sock)
            tls.set_accept_state()
            with contextlib.suppress(SSL.Error, OSError):
                tls.do_handshake()
                self.received = tls.recv(65536)
