"""Simulated machines on this computer: a deployment to its end without an account, a cloud or a TEE.

Everything but the hardware is real: the config disk and the enclave image are the bytes that a cloud would
get, the guest measures them as firmware does, and its evidence has the vendors' formats, under throw-away
roots that `LocalCloud.vendors` gives to a verifier. All that is made from it is reported as simulated.

What is not: no container runs, a machine has no size, the firewall is kept and not enforced, and a machine is
a process of this user's. It needs Linux, and machines have addresses in 127.0.0.0/8.
"""

import codecs
import hashlib
import re
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import msgspec

from functions.clouds.local_machine import (
    CONFIG_DISK,
    ENCLAVE_IMAGE,
    ENV_FILE,
    PROGRESS_FILE,
    LocalMachine,
    MachineState,
)
from functions.clouds.local_vendors import LocalVendors, last_lines
from functions.deploy.cloud import (
    EVIDENCE_PORT,
    DeniedError,
    FirewallRule,
    LogPage,
    Machine,
    Wait,
    Work,
    progress_egress,
)
from functions.deploy.evidence import Verifier
from functions.deploy.machine_claims import CONFIDENTIAL
from functions.deploy.record import Deployment
from shared.compose.env_envelope import MAX_CIPHERTEXT_BYTES
from shared.compose.findings import Finding, error
from shared.errors import CloudError
from shared.measurement.config_disk import config_disk
from shared.measurement.os_image import MAX_SUMS_BYTES, SUMS_NAME, os_image_hash
from shared.measurement.os_image_directory import DISK_NAME
from shared.net.dialer import DirectDialer
from shared.net.endorsement_source import production_source
from shared.net.fetch import HttpClient

MAX_BOOTS: Final = 3
"""How often a machine that ends by itself is started until that counts as its failure."""

KIND: Final = "machine"
PLACE: Final = "local"

_TYPE_FIELD: Final = {"gcp": "machine_type", "nitro": "instance_type"}
_TRAITS: Final[dict[str, dict[str, object]]] = {"gcp": {"vtpm": True}, "nitro": {"debug": False}}
_UID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_ADDRESS_TRIES: Final = 64
_NEEDS: Final = ("/proc/self/environ", "/bin/sh")


class LocalCloud:
    """See `functions.deploy.cloud.Cloud`: plans of platform `gcp` and `nitro`, below `directory`.

    `python` runs the simulator, `image_search_paths` is where OS images lie (without a disk of the planned
    image a guest measures what the plan's measurement document names), `tpm` is `swtpm`, `software` or
    `auto`. `stand_in` is an argv that runs in the place of an app that an enclave's init starts.
    """

    def __init__(
        self,
        directory: Path,
        *,
        python: str = sys.executable,
        image_search_paths: Sequence[Path] = (),
        tpm: Literal["auto", "swtpm", "software"] = "auto",
        stand_in: Sequence[str] = (),
    ) -> None:
        self._machines = directory / "machines"
        self._python = python
        self._image_search_paths = tuple(image_search_paths)
        self._tpm = tpm
        self._stand_in = tuple(stand_in)
        self._http = HttpClient(DirectDialer())
        self.vendors = LocalVendors(directory / "vendors", python)

    def close(self) -> None:
        """Close the connections of `verifier`; machines and the vendors' service run on."""
        self._http.close()

    def verifier(self, platform: str, now: Callable[[], int]) -> Verifier:
        """Return a verifier of one platform's machines that believes simulated ones too, and says so.

        It knows the roots that are there now: make it when evidence is verified. For `gcp` the vendors'
        service must run: it is started, and `UnavailableError("local.vendors")` raised until it answers.
        """
        url = self.vendors.pccs_url() if platform == "gcp" else ""
        source = production_source(pccs_url=url, external=True, http=self._http) if url else None
        return Verifier(self.vendors.anchors(), now, source)

    def check(self, work: Work) -> Sequence[Finding]:
        """See `Cloud`."""
        found = [
            error("local.platform", path, "is not here, and simulated machines need it: use Linux")
            for path in _NEEDS
            if not Path(path).exists()
        ]
        if not found:
            address = self._address(work.deployment)
            if not _can_listen(address) and self.describe(work).status != "RUNNING":
                found.append(
                    error("local.address", address, f"cannot be listened on, at port {EVIDENCE_PORT}")
                )
        return found

    def launch(self, work: Work) -> Wait | Machine:
        """See `Cloud`."""
        with _files():
            machine = self._machine(work)
            state = machine.state()
            if state is not None and state.plan_id != work.plan.plan_id and not self._cleared(machine):
                return Wait(1, "the simulated machine of an earlier plan to end")
            if (state := machine.state()) is None:
                address = self._address(work.deployment)
                work.intend(KIND, work.deployment.name, PLACE, facts={"address": address})
                state = MachineState(
                    plan_id=work.plan.plan_id, platform=self._platform(work), address=address
                )
                machine.write_state(state)
            return self._running(work, machine, state)

    def start(self, work: Work) -> Wait | Machine:
        """See `Cloud`."""
        with _files():
            machine = self._machine(work)
            state = machine.state()
            if state is None:
                raise CloudError(
                    "local.machine", f"{work.deployment.name} has no machine that could be started"
                )
            return self._running(work, machine, state)

    def stop(self, work: Work) -> Wait | Machine:
        """See `Cloud`."""
        with _files():
            machine = self._machine(work)
            state = machine.state()
            if state is None:
                return Machine(status="NOT_FOUND")
            if not machine.power_off():
                return Wait(1, "the simulated machine to power off")
            machine.write_state(msgspec.structs.replace(state, boots=0))
            return self._described(work, machine)

    def retire(self, work: Work) -> Wait | None:
        """See `Cloud`: nothing of a simulated machine is worth keeping but its firewall's rules."""
        return self._end(work, keep_rules=True)

    def remove(self, work: Work) -> Wait | None:
        """See `Cloud`. With the last machine the vendors' service ends too; their roots stay."""
        waiting = self._end(work, keep_rules=False)
        if waiting is None and not self._has_machines():
            self.vendors.retire()
        return waiting

    def describe(self, work: Work) -> Machine:
        """See `Cloud`."""
        with _files():
            machine = self._machine(work)
            return Machine(status="NOT_FOUND") if machine.state() is None else self._described(work, machine)

    def logs(self, work: Work, cursor: str = "", limit: int = 1 << 20) -> LogPage:
        """See `Cloud`: the console of all boots. The cursor is an offset in bytes.

        Raises `CloudError("local.cursor")`.
        """
        if cursor and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 20):
            raise CloudError("local.cursor", f"the cursor is {cursor[:40]!a}, expected an offset")
        with _files():
            return _page(self._machine(work).guest.console_path, int(cursor or 0), limit)

    def firewall(self, work: Work) -> Sequence[FirewallRule]:
        """See `Cloud`. The rules are kept, and not enforced."""
        with _files():
            return self._machine(work).rules()

    def set_firewall(self, work: Work, rule: FirewallRule) -> None:
        """See `Cloud`."""
        with _files():
            machine = self._machine(work)
            machine.write_rules((*_others(machine, rule.protocol, rule.port), rule))
        work.say("a simulated machine's firewall is kept, not enforced")

    def clear_firewall(self, work: Work, protocol: str, port: int) -> bool:
        """See `Cloud`."""
        with _files():
            machine = self._machine(work)
            left = _others(machine, protocol, port)
            had = len(left) != len(machine.rules())
            if had:
                machine.write_rules(left)
            return had

    # ---- one machine ----

    def _machine(self, work: Work) -> LocalMachine:
        uid = work.deployment.uid
        if _UID.fullmatch(uid) is None:
            raise CloudError("local.uid", f"the deployment's uid is {uid[:40]!a}, which names no directory")
        return LocalMachine(self._machines / uid, self._python)

    def _running(self, work: Work, machine: LocalMachine, state: MachineState) -> Wait | Machine:
        """Have the machine run, and return it once it answers."""
        if machine.is_ending() and not machine.power_off():
            return Wait(1, "the simulated machine to power off")
        if not machine.is_running():
            if state.boots >= MAX_BOOTS:
                words = last_lines(machine.guest.console_path)
                raise CloudError(
                    "local.machine.ended", f"the simulated machine ended {state.boots} times: {words}"
                )
            if (waiting := self._boot(work, machine, state)) is not None:
                return waiting
        if not machine.evidence_url():
            return Wait(1, "the simulated machine to boot")
        if state.boots:
            machine.write_state(msgspec.structs.replace(state, boots=0))
        resource = work.intend(KIND, work.deployment.name, PLACE, facts={"address": state.address})
        work.present(resource, directory=str(machine.directory))
        return self._described(work, machine)

    def _boot(self, work: Work, machine: LocalMachine, state: MachineState) -> Wait | None:
        """Make what is missing of the machine's disks, and start it."""
        if state.platform == "nitro":
            self.vendors.make_nitro()
            self._make_enclave_image(work, machine)
            env = work.deployment.files.encrypted_env
            machine.write_offer(ENV_FILE, work.blobs.get(env, MAX_CIPHERTEXT_BYTES) if env else b"")
            machine.write_offer(PROGRESS_FILE, work.progress_url.encode())
            app_id = work.plan.app.app_id
            pid = machine.boot_enclave(self.vendors.nitro, app_id, _egress(work), self._stand_in)
        else:
            self.vendors.publish()
            if not self.vendors.is_publishing():
                return Wait(1, f"the simulated vendors' service {self.vendors.last_words()}".strip())
            if not machine.has_file(CONFIG_DISK):
                machine.write_config_disk(config_disk(work.config_files()))
            disk = self._boot_disk(work)
            pid = machine.boot_guest(self.vendors.gcp, self._tpm, disk)
            measured = "its os image's boot disk" if disk else "what the plan's measurement document names"
            work.say(f"the simulated machine boots {measured}")
        if pid is not None:
            machine.write_state(msgspec.structs.replace(state, boots=state.boots + 1))
        return None

    def _make_enclave_image(self, work: Work, machine: LocalMachine) -> None:
        planned = work.deployment.planned
        if machine.has_file(ENCLAVE_IMAGE):
            return
        if planned is None or not planned.image:
            raise CloudError("local.image", "the plan has no enclave image, expected the blob of one")
        with work.blobs.open(planned.image) as source:
            machine.write_enclave_image(source, planned.image)

    def _boot_disk(self, work: Work) -> Path | None:
        """Return the boot disk of the planned image, None where it is not on this computer."""
        image = work.plan.image
        for place in self._image_search_paths:
            found = place / image.source
            sums = found / SUMS_NAME
            if not (sums.is_file() and sums.stat().st_size <= MAX_SUMS_BYTES):
                continue
            disk = found / DISK_NAME
            if os_image_hash(sums.read_bytes()).hex() == image.os_image_hash and disk.is_file():
                return disk.absolute()
        return None

    def _described(self, work: Work, machine: LocalMachine) -> Machine:
        platform = self._platform(work)
        state = machine.state()
        is_running = machine.is_running()
        address = state.address if state is not None and is_running else ""
        return Machine(
            status="RUNNING" if is_running else "TERMINATED",
            # what is simulated is what was ordered: there is no other hardware that could be told of
            machine_type=str(work.plan.machine.get(_TYPE_FIELD[platform], "")),
            confidential=CONFIDENTIAL[platform],
            external_ip=address,
            internal_ip=address,
            evidence_url=machine.evidence_url() if is_running else "",
            traits=_TRAITS[platform] | {"simulated": True},
        )

    def _end(self, work: Work, *, keep_rules: bool) -> Wait | None:
        with _files():
            machine = self._machine(work)
            if not self._cleared(machine, keep_rules=keep_rules):
                return Wait(1, "the simulated machine to power off")
        for resource in work.deployment.resources:
            if resource.kind == KIND and resource.state != "gone":
                work.gone(resource)
        return None

    def _cleared(self, machine: LocalMachine, *, keep_rules: bool = True) -> bool:
        """End a machine and remove its files; False while it has not ended."""
        if not machine.power_off():
            return False
        machine.discard(keep_rules=keep_rules)
        return True

    def _has_machines(self) -> bool:
        return self._machines.exists() and any(self._machines.iterdir())

    def _platform(self, work: Work) -> str:
        platform = work.plan.platform
        if platform not in _TYPE_FIELD:
            raise DeniedError(
                "local.platform_kind",
                f"the plan is of platform {platform}, simulated are {' and '.join(_TYPE_FIELD)}",
                "set platform to gcp or nitro in app.json, then deploy again",
            )
        return platform

    def _address(self, deployment: Deployment) -> str:
        """Return the machine's recorded address, else one that is free."""
        known = deployment.resource(KIND)
        if known is not None and known.facts.get("address"):
            return known.facts["address"]
        addresses = [_candidate(deployment.uid, number) for number in range(_ADDRESS_TRIES)]
        return next((one for one in addresses if _can_listen(one)), addresses[0])


def _candidate(uid: str, number: int) -> str:
    """Return an address in 127.1.0.1 to 127.254.255.254: those that programs take by themselves are lower."""
    drawn = hashlib.sha256(f"{uid}:{number}".encode()).digest()
    return f"127.{1 + drawn[0] % 254}.{drawn[1]}.{1 + drawn[2] % 254}"


def _can_listen(address: str) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((address, EVIDENCE_PORT))
        except OSError:
            return False
    return True


def _egress(work: Work) -> dict[str, list[int]]:
    """Return where the enclave may go, by host: `egress` of the plan, and to whom its progress is told."""
    allowed = progress_egress(work.progress_url)
    for entry in work.plan.machine.get("egress") or ():
        host, _, port = str(entry).rpartition(":")
        if not host or not port.isascii() or not port.isdigit():
            raise CloudError("local.egress", f"egress has {str(entry)[:80]!a}, expected HOST:PORT")
        allowed.setdefault(host.lower(), []).append(int(port))
    return allowed


def _others(machine: LocalMachine, protocol: str, port: int) -> tuple[FirewallRule, ...]:
    return tuple(rule for rule in machine.rules() if (rule.protocol, rule.port) != (protocol, port))


def _page(path: Path, start: int, limit: int) -> LogPage:
    """Return the text from `start` on; a character that is cut at the end is left for the next page."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(limit)
    except FileNotFoundError:
        data = b""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data)
    unread = len(decoder.getstate()[0])
    if not text and unread == limit:  # a limit smaller than a character
        text, unread = decoder.decode(b"", final=True), 0
    return LogPage(text, str(start + len(data) - unread))


@contextmanager
def _files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CloudError("local.storage", f"the simulated machine's files failed: {error}") from error
