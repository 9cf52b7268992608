"""What runs on the machines of the fake clouds: simulated guests and enclaves, in threads of this process.

A machine of the Compute fake boots from the very bytes of its disks, an enclave from its image. All of them
are under one set of throw-away roots, which `Roots.verifier` believes.
"""

import asyncio
import io
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import msgspec
import uvicorn

from enclave.agent.evidence import evidence_app
from enclave.platform import Platform
from enclave.serving.attested_tls import build_plain_server
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.config_disk import GuestConfig
from enclave.simulator.enclave_image import read_registers, unpack_root
from enclave.simulator.gcp_authority import GcpAuthority
from enclave.simulator.gcp_boot import GcpBoot
from enclave.simulator.gcp_guest import SimulatedGcpTee, boot_guest
from enclave.simulator.nsm import SimulatedNsm
from enclave.simulator.pccs import CollateralServer
from enclave.simulator.responder import APP_ID_PATH, ENCLAVE_PORT, GUEST_PORT
from enclave.tee.nitro import PARENT_CID, NitroTee
from enclave.vsock.config import ForwarderConfig, TcpToVsock, parse_config
from enclave.vsock.forwarder import Forwarder
from enclave.vsock.transport import UnixStandIn
from functions.deploy.evidence import Verifier
from shared.attestation.trust import TrustAnchors
from shared.errors import DstackError, InvalidEvidence
from shared.measurement.boot_disk import read_boot_disk
from shared.measurement.config_disk import LABEL
from shared.measurement.fat_reader import FatVolume
from shared.net.dialer import DirectDialer
from shared.net.endorsement_source import production_source
from shared.net.fetch import HttpClient
from tests.fakes.compute import ComputeFake
from tests.fakes.nitro_parent import Hooks

STOP_SECONDS = 20.0


class Roots:
    """The vendors of all simulated machines: made once, shared by whoever wants to."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.server = CollateralServer(lambda fmspc, ca: self.gcp.collateral(fmspc, ca, int(clock())))
        self.gcp = GcpAuthority.create(self.server.url)
        self.server.files.update(self.gcp.files(lambda: int(clock())))
        self.nitro = SimulatedAuthority.create()
        self._http = HttpClient(DirectDialer())

    @property
    def pccs_url(self) -> str:
        """Where collateral, issuers and revocation lists are, in this process."""
        return self.server.url

    @property
    def anchors(self) -> TrustAnchors:
        """The vendors' own roots, and these."""
        anchors = TrustAnchors.production().with_extra(self.nitro.root_pem, signer="nitro")
        anchors = anchors.with_extra(self.gcp.intel.root_pem, signer="tdx")
        return anchors.with_extra(self.gcp.google.root_pem, signer="gcp_tpm")

    def verifier(self) -> Verifier:
        """Return a verifier at the roots' clock."""
        source = production_source(pccs_url=self.pccs_url, external=True, http=self._http)
        return Verifier(self.anchors, lambda: int(self.clock()), source)

    def __enter__(self) -> Self:
        self.server.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()
        self.server.__exit__(None, None, None)


class SimulatedGuests:
    """Machines by name, enclaves by their parent's name; leaving the block powers all of them off.

    A machine that cannot boot is down, and `failures` says why, by its name. With `measures_disks` False a
    boot disk may be anything: the machine measures what the config disk's measurement document names. An
    enclave is of the app that its image names in /etc/dstack/app-id, else of `app_id`.
    """

    def __init__(
        self, directory: Path, roots: Roots, *, measures_disks: bool = True, app_id: bytes = bytes(20)
    ) -> None:
        self.roots = roots
        self.failures: dict[str, DstackError] = {}
        self.app_id = app_id
        self.address: Callable[[str], str] = lambda _parent: "127.0.0.1"
        """Where a parent's forwarder listens, by its name."""
        self._directory = directory
        self._measures_disks = measures_disks
        self._running: dict[tuple[str, str], ExitStack] = {}
        self._count = 0
        self._sockets = tempfile.TemporaryDirectory(prefix="v")  # a socket's path must be short

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for key in list(self._running):
            self._end(key)
        self._sockets.cleanup()

    def is_running(self, name: str) -> bool:
        """Tell whether a machine, or an enclave on a parent, is up."""
        return ("machine", name) in self._running or ("enclave", name) in self._running

    def follow_compute(self, fake: ComputeFake) -> None:
        """Have the machines of a Compute fake be what their disks make them."""
        fake.on_boot, fake.on_stop = self.on_boot, self.on_stop

    def follow_parents(self, hooks: Hooks) -> None:
        """Have the parents of an EC2 stand-in run their enclaves and forwarders."""
        hooks.on_run_enclave = lambda parent, eif, cid: self.run_enclave(parent.instance_id, eif, cid)
        hooks.on_end_enclave = lambda parent: self.end_enclave(parent.instance_id)
        hooks.on_start_forwarder = lambda parent, config: self.start_forwarder(parent.instance_id, config)
        hooks.on_stop_forwarder = lambda parent: self.stop_forwarder(parent.instance_id)

    # ---- the Compute fake's hooks ----

    def on_boot(self, instance: dict[str, Any], disks: Mapping[str, bytes]) -> None:
        """Boot a machine at its external address, else at its internal one."""
        interface = instance["networkInterfaces"][0]
        external = [access.get("natIP") for access in interface.get("accessConfigs", [])]
        self.boot(instance["name"], disks.values(), external[0] if external else interface["networkIP"])

    def on_stop(self, instance: dict[str, Any]) -> None:
        """Cut a machine's power."""
        self.stop(instance["name"])

    def boot(self, name: str, disks: Iterable[bytes], address: str) -> None:
        """Boot a machine from raw disks, in any order: the config disk, one to boot from, and others."""
        self.stop(name)
        self.failures.pop(name, None)
        with ExitStack() as stack:
            try:
                config, boot = self._read_disks(disks)
                guest = boot_guest(
                    boot, config, self.roots.gcp, self._own_directory(), tpm="software", address=address
                )
                platform = stack.enter_context(guest)
                tee = platform.tee
                assert isinstance(tee, SimulatedGcpTee)
                stack.enter_context(_serving(platform, tee.app_id, GUEST_PORT))
            except DstackError as error:
                self.failures[name] = error
                return
            self._running["machine", name] = stack.pop_all()

    def stop(self, name: str) -> None:
        """Cut a machine's power; one that is off stays so."""
        self._end(("machine", name))

    # ---- the parent instance's hooks ----

    def run_enclave(self, parent: str, eif: Path, cid: int) -> None:
        """Run an enclave image on a parent."""
        self.end_enclave(parent)
        root = self._own_directory() / "root"
        with eif.open("rb") as image:
            nsm = SimulatedNsm(read_registers(image), self.roots.nitro, self.roots.clock)
            unpack_root(image, root)
        tee = NitroTee(nsm, UnixStandIn(self._vsock(parent), cid=cid))
        platform = Platform(image=root, writable=root.parent, tee=tee)
        app_id = self.app_id
        if platform.has_measured(APP_ID_PATH):
            app_id = bytes.fromhex(platform.read_measured(APP_ID_PATH).decode().strip())
        with ExitStack() as stack:
            stack.enter_context(_serving(platform, app_id, ENCLAVE_PORT))
            self._running["enclave", parent] = stack.pop_all()

    def end_enclave(self, parent: str) -> None:
        """End a parent's enclave."""
        self._end(("enclave", parent))

    def start_forwarder(self, parent: str, config: str) -> None:
        """Start a parent's forwarder by its configuration file, with sockets in place of vsock.

        It listens on the parent's address, `address(parent)`.
        """
        self.stop_forwarder(parent)
        read = parse_config(config)
        inbound = tuple(
            msgspec.structs.replace(rule, listen=self._own_listen(parent, rule)) for rule in read.inbound
        )
        transport = UnixStandIn(self._vsock(parent), cid=PARENT_CID)
        with ExitStack() as stack:
            stack.enter_context(_forwarding(msgspec.structs.replace(read, inbound=inbound), transport))
            self._running["forwarder", parent] = stack.pop_all()

    def stop_forwarder(self, parent: str) -> None:
        """Stop a parent's forwarder."""
        self._end(("forwarder", parent))

    # ---- inside ----

    def _read_disks(self, disks: Iterable[bytes]) -> tuple[GuestConfig, GcpBoot]:
        config: GuestConfig | None = None
        bootable: bytes | None = None
        for disk in disks:
            if _label(disk) == LABEL:
                path = self._own_directory() / "config.img"
                path.write_bytes(disk)
                config = GuestConfig.read(path)
            elif self._measures_disks and _is_bootable(disk):
                bootable = disk
        if config is None:
            raise InvalidEvidence("guests.config_disk", f"no disk is called {LABEL}")
        if not self._measures_disks:
            return config, GcpBoot.of_document(config.measurement())
        if bootable is None:
            raise InvalidEvidence("guests.boot_disk", "no disk has something to boot")
        return config, GcpBoot.of_disk(io.BytesIO(bootable), config.measurement())

    def _own_directory(self) -> Path:
        self._count += 1
        path = self._directory / f"guest-{self._count}"
        path.mkdir(parents=True)
        return path

    def _vsock(self, parent: str) -> Path:
        path = Path(self._sockets.name) / parent[-20:]
        path.mkdir(exist_ok=True)
        return path

    def _own_listen(self, parent: str, rule: TcpToVsock) -> str:
        return f"{self.address(parent)}:{rule.listen_address.port}"

    def _end(self, key: tuple[str, str]) -> None:
        stack = self._running.pop(key, None)
        if stack is not None:
            stack.close()


def _label(disk: bytes) -> str:
    with suppress(InvalidEvidence):
        return FatVolume(io.BytesIO(disk)).label
    return ""


def _is_bootable(disk: bytes) -> bool:
    with suppress(InvalidEvidence):
        read_boot_disk(io.BytesIO(disk))
        return True
    return False


@contextmanager
def _serving(platform: Platform, app_id: bytes, port: int) -> Iterator[None]:
    """Answer `POST /evidence` as the guest's agent does."""
    listener = platform.tee.listen("0.0.0.0", port)
    server = build_plain_server(evidence_app(platform.tee.attestor(app_id), app_id))
    with _in_thread(partial(_run, server, listener), lambda: setattr(server, "should_exit", True)):
        yield


def _run(server: uvicorn.Server, listener: Any) -> None:
    asyncio.run(server.serve(sockets=[listener]))


@contextmanager
def _forwarding(config: ForwarderConfig, transport: UnixStandIn) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    forwarder = Forwarder(
        msgspec.structs.replace(config, limits=msgspec.structs.replace(config.limits, drain_seconds=0.1)),
        transport=transport,
        log=lambda _event, **_fields: None,
    )
    with _in_thread(loop.run_forever, lambda: loop.call_soon_threadsafe(loop.stop)):
        try:
            asyncio.run_coroutine_threadsafe(forwarder.start(), loop).result(STOP_SECONDS)
            yield
        finally:
            asyncio.run_coroutine_threadsafe(_stopped(forwarder), loop).result(STOP_SECONDS)
    loop.close()


async def _stopped(forwarder: Forwarder) -> None:
    await forwarder.stop()
    await asyncio.get_running_loop().shutdown_default_executor()


@contextmanager
def _in_thread(run: Callable[[], object], stop: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop()
        thread.join(STOP_SECONDS)
        assert not thread.is_alive(), "a simulated guest did not end"
