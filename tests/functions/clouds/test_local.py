"""Simulated machines on this computer, launched, proved, stopped and removed as machines of a cloud are."""

import hashlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from functions.clouds import local_machine, local_process
from functions.clouds.local import LocalCloud
from functions.clouds.local_process import PLACE
from functions.clouds.local_vendors import LocalVendors
from functions.deploy.cloud import DeniedError, FirewallRule, Machine
from functions.deploy.machine_claims import check_machine
from functions.deploy.record import Deployment, Goal, Step
from functions.deploy.work import LeasedWork
from shared.attestation.envelope import Attestation, decode_envelope
from shared.errors import CloudError, InvalidEvidence, StorageError, UnavailableError
from shared.hex import decode_hex
from tests.fakes.os_images import write_whole_os_image
from tests.functions.clouds.local_deployments import (
    World,
    until_done,
    wait_until,
    world,
    write_gcp_project,
    write_nitro_project,
)
from tests.shared.refusal import refuses

PLATFORMS = ["gcp", "nitro"]
SECRET = "of-the-deployer"

Here = World[LocalCloud]
Machines = Callable[[str], tuple[LeasedWork, Machine]]


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCloud]:
    """One for the session: its vendors are made once."""
    made = LocalCloud(tmp_path_factory.mktemp("local"), tpm="software")
    (made._machines / "another").mkdir(parents=True)  # so that the vendors' service outlives a test
    yield made
    made.vendors.retire()
    made.close()


@pytest.fixture
def here(tmp_path: Path, cloud: LocalCloud) -> Iterator[Here]:
    with world(tmp_path, cloud) as made:
        yield made


def project(here: Here, platform: str, name: str = "project") -> Path:
    write = write_gcp_project if platform == "gcp" else write_nitro_project
    return write(here.place / name)


def launched(here: Here, platform: str) -> tuple[LeasedWork, Machine]:
    work = here.planned_work(project(here, platform))
    return work, until_done(here.cloud.launch, work)


def place_of(here: Here, deployment: Deployment) -> Path:
    return here.cloud._machines / deployment.uid


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, cloud: LocalCloud) -> Iterator[Here]:
    """For tests that only look: each platform's machine runs once."""
    with world(tmp_path_factory.mktemp("shared"), cloud) as made:
        yield made


@pytest.fixture(scope="session")
def machines(shared: Here) -> Machines:
    made: dict[str, tuple[LeasedWork, Machine]] = {}

    def machine(platform: str) -> tuple[LeasedWork, Machine]:
        if platform not in made:
            with pytest.MonkeyPatch.context() as patched:
                patched.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
                work = shared.planned_work(project(shared, platform, platform), platform)
                made[platform] = work, until_done(shared.cloud.launch, work)
        return made[platform]

    return machine


def pids(directory: Path) -> list[int]:
    """All processes of a machine, found without the code under test."""
    wanted = f"{PLACE}={directory}/".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if any(one.startswith(wanted) for one in environment.split(b"\0")):
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_deployment_comes_to_its_end_and_leaves_nothing(here: Here, platform: str) -> None:
    made = here.create(project(here, platform))
    running = here.settle()
    assert running.step is Step.RUNNING, running.failure
    assert running.running is not None
    assert running.running.simulated
    place = place_of(here, made)
    assert pids(place)

    stopped = here.settle(goal=Goal.STOPPED)
    assert (stopped.step, stopped.running.machine_status if stopped.running else "") == (
        Step.STOPPED,
        "TERMINATED",
    )
    assert pids(place) == []

    assert here.settle(goal=Goal.RUNNING).step is Step.RUNNING
    removed = here.settle(goal=Goal.REMOVED)
    assert removed.step is Step.REMOVED
    assert [one.state for one in removed.resources] == ["gone"]
    assert pids(place) == []
    assert not place.exists()


def test_a_redeploy_replaces_the_machine(here: Here) -> None:
    place = project(here, "gcp")
    made = here.create(place)
    first = here.settle()
    (place / "docker-compose.yaml").write_text("services:\n  api:\n    image: api@sha256:" + "cd" * 32 + "\n")
    found = here.store.get("web")
    here.store.replace(
        msgspec.structs.replace(found, step=Step.PREPARE, version=found.version + 1), found.version
    )
    second = here.settle()
    assert second.step is Step.RUNNING, second.failure
    assert first.planned is not None
    assert second.planned is not None
    assert first.planned.compose_hash != second.planned.compose_hash
    assert len(pids(place_of(here, made))) == 1


@pytest.mark.parametrize("platform", PLATFORMS)
def test_the_machine_is_what_was_ordered(shared: Here, machines: Machines, platform: str) -> None:
    work, machine = machines(platform)
    check_machine(work.plan, machine)
    assert machine.traits["simulated"] is True
    assert shared.cloud.describe(work) == machine
    assert shared.cloud.check(work) == []
    assert shared.evidence(work, machine).simulated


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_machine_gets_no_credential_of_its_deployer(
    shared: Here, machines: Machines, platform: str
) -> None:
    work, _ = machines(platform)
    running = pids(place_of(shared, work.deployment))
    assert running
    for pid in running:
        assert SECRET.encode() not in Path(f"/proc/{pid}/environ").read_bytes()


def envelope_of(here: Here, machine: Machine) -> Attestation:
    body = msgspec.json.encode({"challenge": bytes(32).hex()})
    answer = here.http.request("POST", machine.evidence_url, body)
    return decode_envelope(bytes.fromhex(msgspec.json.decode(answer.body)["attestation"]))


def test_evidence_is_of_the_whole_plan(shared: Here, machines: Machines) -> None:
    """The guest records every event that the plan foretells, in its order."""
    work, machine = machines("gcp")
    recorded = [(event.event, event.payload.hex()) for event in envelope_of(shared, machine).runtime_events]
    foretold = [(event.name, event.payload) for event in work.plan.events]
    assert recorded[: len(foretold)] == foretold


@pytest.mark.parametrize("platform", PLATFORMS)
def test_evidence_tells_what_governance_decides_on(shared: Here, machines: Machines, platform: str) -> None:
    work, machine = machines(platform)
    proven = shared.attest(work.deployment, machine.evidence_url).proven
    assert proven is not None
    assert proven.tcb_status == ("" if platform == "nitro" else "UpToDate")
    for value in (proven.mr_aggregated, proven.device_id):
        assert any(decode_hex(value, what="a hash", length=32))


def test_evidence_of_another_plan_is_refused(shared: Here, machines: Machines) -> None:
    work, machine = machines("gcp")
    planned = work.deployment.planned
    assert planned is not None
    other = msgspec.structs.replace(planned, compose_hash="ab" * 32)
    deployment = msgspec.structs.replace(work.deployment, planned=other)
    with refuses("deploy.evidence.workload", InvalidEvidence):
        shared.attest(deployment, machine.evidence_url)


@pytest.mark.skipif(shutil.which("swtpm") is None, reason="swtpm is not installed: package swtpm")
def test_a_stopped_machine_keeps_its_vtpm(here: Here) -> None:
    """So it is the same instance afterwards; and nothing of the TPM's program outlives it."""
    cloud = LocalCloud(here.cloud._machines.parent, tpm="swtpm")
    work = here.planned_work(project(here, "gcp"))

    def instance(machine: Machine) -> bytes:
        return {event.event: event.payload for event in envelope_of(here, machine).runtime_events}[
            "instance-id"
        ]

    with closing(cloud):
        first = instance(until_done(cloud.launch, work))
        assert len(pids(place_of(here, work.deployment))) == 2
        for pid in pids(place_of(here, work.deployment)):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: cloud.describe(work).status == "TERMINATED")
        assert instance(until_done(cloud.start, work)) == first
        until_done(cloud.stop, work)
        assert pids(place_of(here, work.deployment)) == []
        assert instance(until_done(cloud.start, work)) == first


def test_the_boot_disk_of_an_image_that_is_at_hand_is_measured(here: Here) -> None:
    write_whole_os_image(here.place / "images")
    place = project(here, "gcp")
    cloud = LocalCloud(
        here.cloud._machines.parent, image_search_paths=[here.place / "images"], tpm="software"
    )
    work = here.planned_work(place)
    with closing(cloud):
        machine = until_done(cloud.launch, work)
    work.save()
    messages = [event.message for event in here.store.events("web")]
    assert "the simulated machine boots its os image's boot disk" in messages
    assert here.evidence(work, machine).simulated


def test_a_killed_guest_is_noticed_and_started_again(here: Here) -> None:
    work, _ = launched(here, "gcp")
    (pid,) = pids(place_of(here, work.deployment))
    os.kill(pid, signal.SIGKILL)
    down = wait_until(lambda: (found := here.cloud.describe(work)).status == "TERMINATED" and found)
    assert (down.external_ip, down.evidence_url) == ("", "")
    assert until_done(here.cloud.start, work).status == "RUNNING"
    assert here.cloud.describe(work).status == "RUNNING"


def test_a_killed_forwarder_is_noticed_and_started_again(here: Here) -> None:
    work, _ = launched(here, "nitro")
    forwarder = local_machine.LocalMachine(place_of(here, work.deployment), "")._forwarder
    for pid in forwarder.pids():
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: here.cloud.describe(work).status == "TERMINATED")
    machine = until_done(here.cloud.start, work)
    assert here.evidence(work, machine).simulated
    assert len(pids(place_of(here, work.deployment))) == 2


@pytest.mark.parametrize("platform", PLATFORMS)
def test_a_runner_that_is_killed_anywhere_is_continued(
    here: Here, platform: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed behind each write of a file and of the record, and behind each start of a process."""

    class KilledError(BaseException):
        pass

    left = [0]

    def killing(effect: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            result = effect(*args, **kwargs)
            left[0] -= 1
            if not left[0]:
                raise KilledError
            return result

        return call

    work = here.planned_work(project(here, platform))
    kills = 0
    with monkeypatch.context() as patched:
        for owner, name in (
            (local_machine.LocalMachine, "write_file"),
            (local_process.DetachedProcess, "start"),
            (LeasedWork, "save"),
        ):
            patched.setattr(owner, name, killing(getattr(owner, name)))
        while True:
            left[0] = 1 + kills // 2
            try:
                machine = until_done(here.cloud.launch, work)
            except KilledError:
                kills += 1
                work = here.again(work)
            else:
                break
    assert kills >= 4
    assert here.evidence(work, machine).simulated
    assert len(pids(place_of(here, work.deployment))) == (1 if platform == "gcp" else 2)
    assert [one.state for one in work.deployment.resources] == ["present"]


def test_a_machine_that_cannot_boot_fails_with_its_last_words(here: Here) -> None:
    """An app-compose with a file for the agent, which is no agent's."""
    compose = (
        "services:\n  web:\n    image: web@sha256:" + "ab" * 32 + "\n    configs:\n"
        "      - source: c\n        target: /etc/dstack/enclave.toml\nconfigs:\n  c:\n    content: broken\n"
    )
    place = project(here, "gcp")
    (place / "docker-compose.yaml").write_text(compose)
    work = here.planned_work(place)
    with refuses("local.machine.ended", CloudError) as caught:
        until_done(here.cloud.launch, work)
    assert "/etc/dstack/enclave.toml" in caught.value.message
    assert here.cloud.describe(work).status == "TERMINATED"


def test_the_console_is_read_page_by_page(here: Here) -> None:
    work, _ = launched(here, "gcp")
    whole = here.cloud.logs(work)
    assert "measured compose-hash" in whole.text
    assert "starting service web" in whole.text
    text, cursor = "", ""
    while (page := here.cloud.logs(work, cursor, 7)).text:
        text, cursor = text + page.text, page.cursor
    assert text == whole.text
    assert page.cursor == whole.cursor
    assert here.cloud.logs(work, whole.cursor).text == ""
    until_done(here.cloud.stop, work)
    assert "powering off" in here.cloud.logs(work, whole.cursor).text
    with refuses("local.cursor", CloudError):
        here.cloud.logs(work, "-1")


def test_no_page_cuts_a_character(here: Here) -> None:
    work = here.planned_work(project(here, "gcp"))
    directory = place_of(here, work.deployment)
    directory.mkdir(parents=True)
    console = directory / "guest.log"
    console.write_text("aé€x")
    pages, cursor = [], ""
    while (page := here.cloud.logs(work, cursor, 4)).text:
        pages.append(page.text)
        cursor = page.cursor
    assert "".join(pages) == "aé€x"
    with console.open("ab") as file:
        file.write("é".encode()[:1])
    assert here.cloud.logs(work, cursor).text == ""
    with console.open("ab") as file:
        file.write("é".encode()[1:])
    assert here.cloud.logs(work, cursor).text == "é"


def test_firewall_rules_are_kept(here: Here) -> None:
    work = here.planned_work(project(here, "gcp"))
    rule = FirewallRule(action="allow", protocol="tcp", port=443, sources=("203.0.113.0/24",))
    deny = msgspec.structs.replace(rule, action="deny")
    here.cloud.set_firewall(work, rule)
    here.cloud.set_firewall(work, deny)
    here.cloud.set_firewall(work, msgspec.structs.replace(rule, protocol="udp"))
    assert set(here.cloud.firewall(work)) == {deny, msgspec.structs.replace(rule, protocol="udp")}
    assert here.cloud.clear_firewall(work, "tcp", 443)
    assert not here.cloud.clear_firewall(work, "tcp", 443)
    until_done(here.cloud.retire, work)
    assert [one.protocol for one in here.cloud.firewall(work)] == ["udp"]
    until_done(here.cloud.remove, work)
    assert here.cloud.firewall(work) == ()


def test_what_is_not_there_can_be_stopped_and_removed(here: Here) -> None:
    work = here.planned_work(project(here, "gcp"))
    assert here.cloud.describe(work).status == "NOT_FOUND"
    assert until_done(here.cloud.stop, work).status == "NOT_FOUND"
    assert here.cloud.retire(work) is None
    assert here.cloud.remove(work) is None
    assert here.cloud.remove(work) is None
    with refuses("local.machine", CloudError):
        here.cloud.start(work)


def test_a_uid_cannot_lead_elsewhere(here: Here) -> None:
    work = here.planned_work(project(here, "gcp"))
    other = msgspec.structs.replace(work.deployment, uid="../../x")
    with refuses("local.uid", CloudError):
        here.cloud.remove(LeasedWork(here.store, here.blobs, other, here.clock))


def test_another_enclave_image_than_the_blob_is_not_run(here: Here) -> None:
    work = here.planned_work(project(here, "nitro"))
    planned = work.deployment.planned
    assert planned is not None
    path = here.place / "blobs" / planned.image
    path.write_bytes(path.read_bytes() + b"x")
    assert hashlib.sha256(path.read_bytes()).hexdigest() != planned.image
    with refuses("deploy.blob.corrupt", StorageError):
        until_done(here.cloud.launch, work)
    assert pids(place_of(here, work.deployment)) == []


def test_the_vendors_service_lives_as_long_as_a_machine(tmp_path: Path) -> None:
    cloud = LocalCloud(tmp_path / "own", tpm="software")
    with closing(cloud), world(tmp_path / "here", cloud) as here:
        first = here.planned_work(project(here, "gcp"), "one")
        second = here.planned_work(project(here, "gcp"), "two")
        for work in (first, second):
            until_done(cloud.launch, work)
        url = cloud.vendors.pccs_url()
        until_done(cloud.remove, first)
        assert cloud.vendors.is_publishing()
        until_done(cloud.remove, second)
        assert pids(tmp_path / "own") == []
        # the roots stay, so does the address that stands in certificates
        until_done(cloud.launch, second)
        assert cloud.vendors.pccs_url() == url


def test_a_plan_of_a_platform_that_is_not_simulated_is_refused(here: Here) -> None:
    work = here.planned_work(project(here, "nitro"))
    plan = work.plan
    assert plan.platform == "nitro"
    other = msgspec.structs.replace(plan, platform="aws")
    with refuses("local.platform_kind", DeniedError):
        here.cloud._platform(SimpleNamespace(plan=other))  # type: ignore[arg-type] # all that it reads


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("exit 3", "ended with 3"),
        ("echo one >&2; echo no space. >&2; exit 1", "no space"),
        (None, "PermissionError"),
    ],
)
def test_roots_that_cannot_be_made_are_told_and_leave_none(
    tmp_path: Path, script: str | None, said: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o600 if script is None else 0o700)
    vendors = LocalVendors(tmp_path / "vendors", str(program))
    with refuses("local.vendors", CloudError) as refused:
        vendors.make_nitro()
    assert refused.value.message.endswith(said)
    assert not vendors.nitro.exists()


def test_evidence_waits_for_vendors_that_do_not_answer(tmp_path: Path) -> None:
    vendors = LocalVendors(tmp_path / "vendors", shutil.which("false") or "/bin/false")
    (vendors.gcp / "google").mkdir(parents=True)
    (vendors.gcp / "google" / "url").write_text("http://127.0.0.1:1")
    with refuses("local.vendors", UnavailableError):
        vendors.pccs_url()
