"""A deployment's life on Google Cloud: launched, stopped, started, redeployed, read, removed."""

import io

import msgspec
import pytest

from functions.clouds.gcp_settings import config_digest
from functions.deploy.cloud import DEPLOYMENT, EVIDENCE_PORT, MANAGED_BY, DeniedError, Machine
from functions.deploy.machine_claims import check_machine
from functions.deploy.record import Files
from shared.errors import CloudError, ConfigError
from shared.measurement.config_disk import config_disk
from shared.measurement.disk_image import MIB, range_of
from shared.measurement.gpt import read_partition_table
from tests.functions.clouds.gcp_world import BOOT_MARK, CONFIG, NAME, UID, World
from tests.shared.refusal import refuses

PLAN2 = "d2" * 32


def disk_of(files: dict[str, bytes]) -> bytes:
    return b"".join(config_disk(files).chunks())


# ---- launch ----


def test_a_launch_ends_with_the_machine_that_was_ordered(gcp: World) -> None:
    machine = gcp.launch()
    check_machine(gcp.work().plan, machine)
    assert machine.status == "RUNNING"
    assert machine.evidence_url == f"http://127.0.0.1:{EVIDENCE_PORT}/evidence"
    assert machine.internal_ip.startswith("10.")


def test_the_guest_boots_with_its_three_disks(gcp: World) -> None:
    booted: list[dict[str, bytes]] = []
    gcp.fake.on_boot = lambda _, disks: booted.append(dict(disks))
    gcp.launch()
    (disks,) = booted
    assert sorted(disks) == [NAME, f"{NAME}-data", f"{NAME}-shared"]
    assert disks[NAME].startswith(BOOT_MARK)
    (partition,) = read_partition_table(range_of(io.BytesIO(disks[f"{NAME}-data"]))).partitions
    assert partition.name == "dstack-data"
    assert disks[f"{NAME}-shared"] == disk_of(CONFIG)


def test_everything_bears_the_deployments_label_and_was_recorded(gcp: World) -> None:
    gcp.launch()
    recorded = {(one.kind, one.name) for one in gcp.resources() if one.state != "gone"}
    for kind in ("instance", "disk", "image"):
        for name in gcp.fake.names(kind):
            assert (kind, name) in recorded
            labels = gcp.fake.find(kind, name).json["labels"]
            assert labels[MANAGED_BY] == "dstack-cloud"
            is_shared = name.startswith("dstack-")
            assert (DEPLOYMENT in labels) is not is_shared
            assert is_shared or labels[DEPLOYMENT] == UID
    assert {("object", key) for _, key in gcp.storage.objects} <= recorded


def test_a_resource_is_recorded_before_it_is_asked_for(gcp: World) -> None:
    seen = []

    def look(phase: str, request) -> None:
        if phase == "before" and request.method_id.endswith(".insert"):
            name = request.query.get("name") or (request.body or {}).get("name")
            seen.append(name)
            if request.method_id == "compute.firewalls.insert":
                return  # a rule is found by its name and its description
            assert any(one.name == name for one in gcp.store.get(NAME).resources), name

    gcp.rest.hook = look
    gcp.launch()
    assert {NAME, f"{NAME}-data", f"{NAME}-shared", "dstack-data-disk"} <= set(seen)


def test_a_launch_again_changes_nothing(gcp: World) -> None:
    gcp.launch()
    version = gcp.store.get(NAME).version
    calls = len(gcp.rest.calls)
    gcp.launch()
    assert gcp.store.get(NAME).version == version
    assert {call.http_method for call in gcp.rest.calls[calls:]} == {"GET"}


def test_a_second_deployment_shares_the_images_and_leaves_them(gcp: World) -> None:
    gcp.launch()
    gcp.create(name="other", uid="other-uid")
    gcp.launch("other")
    inserted = [call.body["name"] for call in gcp.rest.called("compute.images.insert")]
    assert sorted(inserted) == sorted({*inserted})
    gcp.until_done(gcp.cloud.remove, "other")
    assert gcp.fake.names("instance") == [NAME]
    assert gcp.fake.names("image") == ["dstack-abababababababab", "dstack-data-disk", f"{NAME}-shared"]
    events = [event.message for event in gcp.store.events("other")]
    assert any("dstack-data-disk stays" in message for message in events)


def test_an_image_that_another_deployment_makes_meanwhile_is_shared(gcp: World) -> None:
    def race(phase: str, request) -> None:
        is_insert = (phase, request.method_id) == ("before", "compute.images.insert")
        if is_insert and request.body["name"] == "dstack-data-disk":
            _, key = next(one for one in gcp.storage.objects if one[1].startswith("data-images/"))
            archive = gcp.storage.objects["project-dstack", key].data
            gcp.fake.put("image", "dstack-data-disk").archive = archive
            gcp.rest.hook = None

    gcp.rest.hook = race
    gcp.launch()
    assert gcp.fake.names("image").count("dstack-data-disk") == 1


def test_a_guest_that_was_stopped_while_it_was_launched_is_started(gcp: World) -> None:
    gcp.launch()
    gcp.fake.power_off(NAME)
    assert gcp.cloud.describe(gcp.work()).status == "TERMINATED"
    assert gcp.launch().status == "RUNNING"


def test_an_instance_of_another_plan_is_replaced(gcp: World) -> None:
    gcp.launch()
    before = gcp.fake.find("instance", NAME).json["id"]
    gcp.replan(PLAN2)
    gcp.launch()
    after = gcp.fake.find("instance", NAME).json
    assert after["id"] != before
    assert after["labels"]["dstack-plan"] == PLAN2[:32]


def test_a_new_encrypted_env_makes_a_new_config_disk(gcp: World) -> None:
    booted: list[bytes] = []
    gcp.fake.on_boot = lambda _, disks: booted.append(disks[f"{NAME}-shared"])
    gcp.launch()
    found = gcp.store.get(NAME)
    env = gcp.blobs.put(b"ciphertext")
    gcp.change(files=msgspec.structs.replace(found.files, encrypted_env=env))
    assert config_digest(gcp.store.get(NAME)) != config_digest(found)
    gcp.launch()
    assert booted == [disk_of(CONFIG), disk_of(CONFIG | {".encrypted-env": b"ciphertext"})]


def test_a_larger_data_disk_is_grown_in_place(gcp: World) -> None:
    gcp.launch()
    before = gcp.fake.find("disk", f"{NAME}-data").json["id"]
    gcp.replan(PLAN2, data_size=50)
    gcp.until_done(gcp.cloud.retire)
    gcp.launch()
    disk = gcp.fake.find("disk", f"{NAME}-data").json
    assert (disk["id"], disk["sizeGb"]) == (before, "50")


def test_data_is_not_left_behind_in_another_zone(gcp: World) -> None:
    gcp.launch()
    gcp.until_done(gcp.cloud.retire)
    gcp.replan(PLAN2, zone="us-central1-b")
    with refuses("gcp.data.zone", DeniedError):
        gcp.launch()


# ---- lies (N-80) ----


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        ({"confidential": None}, "deploy.machine.confidential"),
        ({"confidential": "SEV"}, "deploy.machine.confidential"),
        ({"machine_type": "n2-standard-4"}, "deploy.machine.type"),
        ({"vtpm": False}, "deploy.machine.vtpm"),
    ],
)
def test_n80_a_cloud_that_lies_about_the_machine_is_caught(gcp: World, lie, code: str) -> None:
    gcp.fake.lie(**lie)
    machine = gcp.launch()
    with refuses(code, CloudError):
        check_machine(gcp.work().plan, machine)


# ---- stop, start, retire, remove ----


def test_a_stopped_machine_keeps_its_disks_and_starts_again(gcp: World) -> None:
    gcp.launch()
    stopped = gcp.until_done(gcp.cloud.stop)
    assert stopped.status == "TERMINATED"
    assert gcp.fake.names("disk") == [NAME, f"{NAME}-data", f"{NAME}-shared"]
    assert gcp.until_done(gcp.cloud.stop).status == "TERMINATED"
    assert gcp.until_done(gcp.cloud.start).status == "RUNNING"


def test_there_is_nothing_to_stop_before_a_launch(gcp: World) -> None:
    assert gcp.until_done(gcp.cloud.stop) == Machine(status="NOT_FOUND")
    assert gcp.cloud.describe(gcp.work()).status == "NOT_FOUND"


def test_a_machine_that_is_gone_cannot_be_started(gcp: World) -> None:
    with refuses("gcp.instance.missing", DeniedError) as caught:
        gcp.cloud.start(gcp.work())
    assert isinstance(caught.value, DeniedError)
    assert caught.value.hint == f"dstack-cloud deploy {NAME}"


def test_retiring_keeps_the_data_disk_alone(gcp: World) -> None:
    gcp.launch()
    gcp.until_done(gcp.cloud.retire)
    assert gcp.left() == {"disk": [f"{NAME}-data"], "firewall": [f"{NAME}-allow-tcp-8090"]}
    gcp.launch()
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


def test_a_removal_finds_what_was_never_recorded(gcp: World) -> None:
    gcp.launch()
    labels = {MANAGED_BY: "dstack-cloud", DEPLOYMENT: UID}
    gcp.fake.put("disk", "stray", zone="us-central1-b", labels=labels, sizeGb="10")
    gcp.fake.put("image", "stray-image", labels=labels)
    gcp.fake.put("disk", "foreign", zone="us-central1-b", labels={DEPLOYMENT: "other"}, sizeGb="10")
    # bears our uid, and does not say that we manage it: it is neither removed nor waited for
    gcp.fake.put("disk", "copied", zone="us-central1-b", labels={DEPLOYMENT: UID}, sizeGb="10")
    gcp.fake.put("image", "copied-image", labels={DEPLOYMENT: UID})
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {"disk": ["copied", "foreign"], "image": ["copied-image"]}


def test_a_removal_waits_for_a_zone_that_does_not_answer(gcp: World) -> None:
    gcp.launch()
    gcp.fake.unreachable = {"us-central1-b"}
    with refuses("gcp.unreachable", CloudError):
        gcp.until_done(gcp.cloud.remove)
    gcp.fake.unreachable = set()
    assert gcp.until_done(gcp.cloud.remove) is None


def test_a_removal_reads_every_page(gcp: World) -> None:
    gcp.launch()
    gcp.fake.page_size = 1
    labels = {MANAGED_BY: "dstack-cloud", DEPLOYMENT: UID}
    for number in range(3):
        gcp.fake.put("image", f"stray-{number}", labels=labels)
        gcp.fake.put("disk", f"stray-{number}", zone="us-central1-b", labels=labels, sizeGb="10")
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


def test_a_removal_needs_neither_the_project_nor_its_plan(gcp: World) -> None:
    gcp.launch()
    gcp.change(files=Files(project={"app.json": "00" * 32}), planned=None)
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


def test_a_removal_of_what_was_never_launched_asks_nobody(gcp: World) -> None:
    assert gcp.cloud.remove(gcp.work()) is None
    assert not gcp.rest.calls


def test_what_somebody_removed_by_hand_is_gone(gcp: World) -> None:
    gcp.launch()
    for path, item in list(gcp.fake.items.items()):
        if item.kind in {"instance", "disk"}:
            del gcp.fake.items[path]
    gcp.until_done(gcp.cloud.remove)
    assert gcp.left() == {}


def test_a_deployment_without_a_project_has_no_machine(gcp: World) -> None:
    gcp.change(planned=None)
    assert gcp.cloud.describe(gcp.work()).status == "NOT_FOUND"
    assert gcp.cloud.stop(gcp.work()).status == "NOT_FOUND"
    assert not gcp.rest.calls


# ---- console ----


def test_the_console_is_read_from_a_cursor_on(gcp: World) -> None:
    gcp.launch()
    gcp.fake.write_console(NAME, b"one\n")
    first = gcp.cloud.logs(gcp.work())
    assert first.text == "one\n"
    gcp.fake.write_console(NAME, "zwei ü\n".encode())
    second = gcp.cloud.logs(gcp.work(), first.cursor)
    assert second.text == "zwei ü\n"
    assert gcp.cloud.logs(gcp.work(), second.cursor).text == ""


def test_a_page_of_the_console_ends_at_a_whole_character(gcp: World) -> None:
    gcp.launch()
    gcp.fake.write_console(NAME, "aü\xff".encode("latin-1") + "üb".encode())
    texts, cursor = [], ""
    for _ in range(6):
        page = gcp.cloud.logs(gcp.work(), cursor, limit=2)
        texts.append(page.text)
        cursor = page.cursor
    assert "".join(texts) == "a��üb"
    assert all(len(text.encode()) <= 6 for text in texts)


def test_100_mb_of_console_are_read_in_pages_and_losses_are_told(gcp: World) -> None:
    gcp.launch()
    page = bytes(range(32, 96)) * (MIB // 64)
    read, cursor = 0, ""
    for _ in range(100):
        gcp.fake.write_console(NAME, page)
        found = gcp.cloud.logs(gcp.work(), cursor)
        assert found.text == page.decode()
        read += len(found.text)
        cursor = found.cursor
    assert read == 100 * MIB
    for _ in range(3):
        gcp.fake.write_console(NAME, page)
    found = gcp.cloud.logs(gcp.work(), cursor)
    assert found.text == f"[{2 * MIB} bytes of console output are lost]\n" + page.decode()


def test_a_machine_that_started_anew_is_read_from_its_beginning(gcp: World) -> None:
    gcp.launch()
    gcp.fake.write_console(NAME, b"first boot\n")
    cursor = gcp.cloud.logs(gcp.work()).cursor
    gcp.until_done(gcp.cloud.stop)
    gcp.until_done(gcp.cloud.start)
    gcp.fake.write_console(NAME, b"again\n")
    assert gcp.cloud.logs(gcp.work(), cursor).text == "[the machine started anew]\nagain\n"
    gcp.replan(PLAN2)
    gcp.launch()
    gcp.fake.write_console(NAME, b"a longer first boot\n")
    assert gcp.cloud.logs(gcp.work(), cursor).text == "a longer first boot\n"


@pytest.mark.parametrize("cursor", ["x", "1:-1", ":", "id:٣", f"id:{'9' * 30}"])
def test_another_logs_cursor_is_refused(gcp: World, cursor: str) -> None:
    gcp.launch()
    with refuses("gcp.logs.cursor", ConfigError):
        gcp.cloud.logs(gcp.work(), cursor)


def test_a_console_without_a_machine_is_refused(gcp: World) -> None:
    with refuses("gcp.instance.missing", DeniedError):
        gcp.cloud.logs(gcp.work())
