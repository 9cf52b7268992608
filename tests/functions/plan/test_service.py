"""Plans of whole projects, on every platform, without a chain."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from functions.plan.model import Plan, read_plan
from functions.plan.service import PlanOptions, plan_deployment
from shared.compose.app_compose import canonical_bytes
from shared.compose.project import GlobalConfig, Services
from shared.compose.state import Deployed, State, write_state
from shared.errors import ConfigError, ExitCode, InvalidEvidence, PolicyDenied, UnavailableError
from shared.measurement.config_disk import config_disk
from shared.measurement.vm_config import parse_vm_config
from tests.functions.plan.projects import (
    APP_ID,
    ENCLAVE,
    PINNED,
    FakeBuilder,
    write_os_image,
    write_project,
)
from tests.shared.refusal import refuses

CONFIG = GlobalConfig(services=Services(kms_urls=("https://kms.example",)), image_search_paths=("images",))


def planned(directory: Path, builder: FakeBuilder | None = None, **options: Any) -> Plan:
    return plan_deployment(
        directory, CONFIG, PlanOptions(**options), build_enclave=builder or FakeBuilder(), ask_chain=None
    )


@pytest.fixture
def cloud(tmp_path: Path) -> Path:
    write_os_image(tmp_path / "demo" / "images")
    return write_project(tmp_path / "demo")


def lived(directory: Path, plan: Plan) -> None:
    """Leave behind what a deployment of `plan` leaves."""
    (directory / "shared").mkdir(exist_ok=True)
    (directory / "shared" / "app-compose.json").write_text(plan.compose.text)
    deployed = Deployed(
        plan_id=plan.plan_id,
        compose_hash=plan.compose.compose_hash,
        os_image_hash=plan.image.os_image_hash,
        app_id=plan.app.app_id,
        config_disk_sha256=plan.config_disk.sha256 if plan.config_disk else "",
    )
    (directory / "state.json").write_bytes(
        write_state(State(platform=plan.platform, status="RUNNING", deployed=deployed))
    )


# ---- VMs ----


def test_plans_a_vm(cloud: Path) -> None:
    plan = planned(cloud)
    assert plan.outcome == "changes"
    assert plan.exit_code is ExitCode.CHANGES_PENDING
    assert plan.compose.compose_hash == sha256(plan.compose.text.encode()).hexdigest()
    assert canonical_bytes(json.loads(plan.compose.text)) == plan.compose.text.encode()
    assert plan.image.registers == {"uki_auth": "5a" * 32}
    assert (plan.app.app_id, plan.app.source) == (APP_ID, "app.json")
    assert plan.findings == ()
    assert [call.function for call in plan.approval.calls] == [
        "addOsImageHash(bytes32)",
        "addComposeHash(bytes32)",
    ]
    assert [(one.name, one.payload) for one in plan.events][1:3] == [
        ("app-id", APP_ID),
        ("compose-hash", plan.compose.compose_hash),
    ]


def test_two_plans_of_one_project_are_equal(cloud: Path) -> None:
    assert msgspec.json.encode(planned(cloud)) == msgspec.json.encode(planned(cloud))


def test_a_plan_changes_nothing(cloud: Path) -> None:
    before = {path: path.read_bytes() for path in cloud.rglob("*") if path.is_file()}
    planned(cloud)
    assert {path: path.read_bytes() for path in cloud.rglob("*") if path.is_file()} == before


def test_the_config_disk_is_the_one_that_would_be_made(cloud: Path) -> None:
    (cloud / ".user-config").write_text("{}")
    disk = planned(cloud).config_disk
    assert disk is not None
    assert [file.name for file in disk.files] == [
        *("app-compose.json", ".sys-config.json", ".instance_info", ".user-config")
    ]
    assert (disk.size % (1 << 20), len(disk.sha256), disk.pending) == (0, 64, ())


def test_the_config_disk_hash_covers_every_byte(cloud: Path) -> None:
    first = planned(cloud).config_disk
    (cloud / ".user-config").write_text("{}")
    second = planned(cloud).config_disk
    assert first is not None
    assert second is not None
    assert first.sha256 != second.sha256


def test_the_sys_config_binds_the_image(cloud: Path) -> None:
    seen: dict[str, bytes] = {}

    def spy(files: dict[str, bytes]) -> Any:
        seen.update(files)
        return config_disk(files)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("functions.plan.assembly.config_disk", spy)
        plan = planned(cloud)
    document = json.loads(seen[".sys-config.json"])
    assert document["kms_urls"] == ["https://kms.example"]
    assert parse_vm_config(document["vm_config"]).os_image_hash.hex() == plan.image.os_image_hash


def test_what_is_made_later_leaves_the_disk_open(cloud: Path) -> None:
    write_project(cloud, instance_id_seed=...)
    (cloud / ".env").write_text("API_KEY=hunter2\n")
    plan = planned(cloud)
    assert plan.config_disk is not None
    assert plan.config_disk.sha256 == ""
    assert [one.partition(":")[0] for one in plan.config_disk.pending] == [".encrypted-env", ".instance_info"]
    assert json.loads(plan.compose.text)["allowed_envs"] == ["API_KEY"]
    assert b"hunter2" not in msgspec.json.encode(plan)


def test_without_an_app_id_the_guest_derives_one(cloud: Path) -> None:
    write_project(cloud, app_id="")
    plan = planned(cloud)
    assert plan.app.source == "compose_hash"
    assert plan.compose.compose_hash.startswith(plan.app.app_id)


def test_an_app_id_may_be_given(cloud: Path) -> None:
    plan = planned(cloud, app_id=b"\x44" * 20)
    assert (plan.app.app_id, plan.app.source) == ("44" * 20, "option")


def test_predicts_pcr8_of_a_nitrotpm_guest(tmp_path: Path) -> None:
    write_os_image(tmp_path / "demo" / "images", "aws")
    plan = planned(
        write_project(tmp_path / "demo", platform="aws", key_provider="tpm", gateway_enabled=False)
    )
    assert set(plan.image.registers) == {"boot_pcr_digest", "PCR8"}
    assert len(plan.image.registers["PCR8"]) == 96
    assert plan.machine["instance_type"] == "m6i.large"


def test_ships_an_app_compose_byte_for_byte(cloud: Path) -> None:
    raw = json.dumps({"manifest_version": 2, "name": "x", "runner": "docker-compose"}, indent=4).encode()
    (cloud / "mine.json").write_bytes(raw)
    (cloud / "docker-compose.yaml").unlink()
    write_project(cloud, app_compose_file="mine.json")
    plan = planned(cloud)
    assert plan.compose.form == "verbatim"
    assert plan.compose.compose_hash == sha256(raw).hexdigest()
    assert plan.outcome == "refused"  # it names no compose file to run


def test_an_app_compose_that_no_guest_reads_is_refused(cloud: Path) -> None:
    (cloud / "mine.json").write_text('{"manifest_version":3}')
    write_project(cloud, app_compose_file="mine.json")
    with refuses("compose.manifest_version", PolicyDenied):
        planned(cloud)


def test_n73_an_unpinned_image_refuses_the_plan(cloud: Path) -> None:
    write_project(cloud, compose="services:\n  web:\n    image: nginx\n")
    plan = planned(cloud)
    assert plan.exit_code is ExitCode.REFUSED
    assert plan.findings[0].code == "lint.image.digest"


@pytest.mark.parametrize(
    ("env", "fields", "code"),
    [
        ("", {"key_provider": "tpm", "gateway_enabled": False}, "lint.env.kms"),
        ("A='x'", {}, "lint.env.quotes"),
    ],
)
def test_flags_the_env_file(cloud: Path, env: str, fields: dict[str, Any], code: str) -> None:
    write_project(cloud, **fields)
    (cloud / ".env").write_text(env)
    assert code in [one.code for one in planned(cloud).findings]


def test_flags_a_variable_that_a_shipped_document_does_not_allow(cloud: Path) -> None:
    (cloud / "mine.json").write_text(planned(cloud).compose.text)
    write_project(cloud, app_compose_file="mine.json")
    (cloud / ".env").write_text("A=x")
    found = {one.code: one.where for one in planned(cloud).findings}
    assert found["lint.env.undeclared"] == "A"


@pytest.mark.parametrize(
    ("changed", "where"),
    [
        ({"requirements": {"platforms": ["dstack-tdx"]}}, "requirements.platforms"),
        ({"requirements": {"launch_token_hash": "ab" * 32}}, ".user-config"),
        ({"key_provider": "local", "gateway_enabled": False}, "key_provider"),
    ],
)
def test_flags_what_would_stop_the_guest_at_boot(cloud: Path, changed: dict[str, Any], where: str) -> None:
    document = json.loads(planned(cloud).compose.text) | {"manifest_version": "3"} | changed
    (cloud / "mine.json").write_bytes(canonical_bytes(document))
    write_project(cloud, app_compose_file="mine.json")
    assert where in [one.where for one in planned(cloud).findings if one.severity == "error"]


# ---- OS images ----


def test_an_image_that_is_not_here_is_named(cloud: Path) -> None:
    write_project(cloud, os_image="dstack-9.9.9")
    with refuses("plan.os_image.missing", ConfigError):
        planned(cloud)


@pytest.mark.parametrize("name", ["../images/dstack-0.6.0", ".", "..", "/etc", ".hidden", "a/b", "a\0b"])
def test_n06_an_image_name_is_no_path(cloud: Path, name: str) -> None:
    write_project(cloud, os_image=name)
    with refuses("plan.os_image.missing" if "\0" in name else "plan.os_image.name", ConfigError):
        planned(cloud)


def test_an_image_whose_files_disagree_is_refused(cloud: Path) -> None:
    image = cloud / "images" / "dstack-0.6.0"
    (image / "digest.txt").write_text("ab" * 32)
    with refuses("plan.os_image.digest", ConfigError):
        planned(cloud)
    (image / "digest.txt").unlink()
    with refuses("plan.file.missing", ConfigError):
        planned(cloud)


def test_a_measurement_that_the_list_does_not_name_is_refused(cloud: Path) -> None:
    image = cloud / "images" / "dstack-0.6.0"
    (image / "measurement.gcp.cbor").write_bytes(b"\xa0")
    with refuses("measurement.checksum", InvalidEvidence):
        planned(cloud)


# ---- what is deployed ----


def test_nothing_to_do_where_the_same_is_deployed(cloud: Path) -> None:
    lived(cloud, planned(cloud))
    plan = planned(cloud)
    assert plan.outcome == "nothing"
    assert plan.exit_code is ExitCode.OK
    assert plan.changes == ()


def test_names_what_changed_since(cloud: Path) -> None:
    lived(cloud, planned(cloud))
    write_project(cloud, public_logs=True)
    plan = planned(cloud)
    assert plan.exit_code is ExitCode.CHANGES_PENDING
    assert [one.path for one in plan.changes] == ["compose_hash", "config_disk", "app_compose.public_logs"]


def test_n75_an_update_that_drops_a_field_is_refused(cloud: Path) -> None:
    (cloud / "prelaunch.sh").write_text("true")
    lived(cloud, planned(cloud))
    (cloud / "prelaunch.sh").unlink()
    plan = planned(cloud)
    assert plan.exit_code is ExitCode.REFUSED
    dropped = [one.where for one in plan.findings if one.code == "plan.compose.dropped"]
    assert dropped == ["pre_launch_script"]
    assert "plan.old_hash" in [one.code for one in plan.findings]
    assert planned(cloud, may_drop=("pre_launch_script",)).exit_code is ExitCode.CHANGES_PENDING


def test_reads_what_upstreams_command_left(cloud: Path) -> None:
    first = planned(cloud)
    lived(cloud, first)
    (cloud / "state.json").write_text('{"platform":"gcp","status":"RUNNING","instance_name":"x"}')
    plan = planned(cloud)
    # it names neither the image nor the disk, so nobody can say that nothing would change
    assert (plan.outcome, [one.path for one in plan.changes]) == ("changes", ["plan_id"])
    assert "plan.unknown" in [one.code for one in plan.findings]
    (cloud / "shared" / "app-compose.json").unlink()
    assert planned(cloud).deployed is not None


@pytest.mark.parametrize("state", ["{}", '{"status":"RUNNING","deployed":{}}', '{"status":"removed"}'])
def test_what_a_state_does_not_say_counts_as_changed(cloud: Path, state: str) -> None:
    (cloud / "state.json").write_text(state)
    assert planned(cloud).exit_code is ExitCode.CHANGES_PENDING


@pytest.mark.parametrize(
    "change", [{"gcp_config": {"machine_type": "c3-standard-8"}}, {"gcp_config": {"data_size": 40}}]
)
def test_a_change_of_the_machine_alone_is_seen(cloud: Path, change: dict[str, Any]) -> None:
    lived(cloud, planned(cloud))
    write_project(cloud, **change)
    assert [one.path for one in planned(cloud).changes] == ["plan_id"]


def test_a_change_beside_encrypted_variables_is_seen(cloud: Path) -> None:
    (cloud / ".env").write_text("API_KEY=hunter2\n")
    lived(cloud, planned(cloud))
    plan = planned(cloud)
    assert plan.outcome == "nothing"
    assert "plan.env_values" in [one.code for one in plan.findings]
    (cloud / ".user-config").write_text("{}")
    assert planned(cloud).outcome == "changes"


@pytest.mark.parametrize("prepared", [b"\xff{", b"[]", b'{"a":1,"a":2}'])
def test_a_deployed_document_that_does_not_parse_is_named(cloud: Path, prepared: bytes) -> None:
    (cloud / "state.json").write_text('{"status":"RUNNING"}')
    (cloud / "shared").mkdir()
    (cloud / "shared" / "app-compose.json").write_bytes(prepared)
    with refuses("plan.deployed.compose", ConfigError):
        planned(cloud)


def test_an_earlier_plan_may_hold_no_lone_surrogate(cloud: Path, tmp_path: Path) -> None:
    document = msgspec.to_builtins(planned(cloud))
    document["compose"]["text"] = '"\ud800"'
    (tmp_path / "old.json").write_text(json.dumps(document))
    with refuses("plan.deployed.compose", ConfigError):
        planned(cloud, against=str(tmp_path / "old.json"))


def test_a_refused_plan_has_no_calldata(cloud: Path) -> None:
    write_project(cloud, compose="services:\n  web:\n    image: nginx\n")
    approval = planned(cloud, kms_contract=b"\x01" * 20).approval
    assert (approval.checked, approval.calls, len(approval.notes)) == (False, (), 1)


def test_a_derived_app_id_gets_no_call(cloud: Path) -> None:
    write_project(cloud, app_id="")
    assert [call.to for call in planned(cloud).approval.calls] == ["", ""]


@pytest.mark.parametrize("place", ["~nobody-here/x", "x" * 300])
def test_a_place_that_no_file_can_have_is_named(cloud: Path, place: str) -> None:
    write_project(cloud, platform="nitro", nitro_config={"image": place})
    with refuses("plan.file.place", ConfigError):
        planned(cloud)
    write_project(cloud, os_image=place.replace("/", ""))
    with refuses("plan.file.place", ConfigError):
        planned(cloud)


def test_a_prepared_document_that_was_not_deployed_is_not_compared(cloud: Path) -> None:
    lived(cloud, planned(cloud))
    (cloud / "shared" / "app-compose.json").write_text('{"other":1}')
    plan = planned(cloud)
    assert plan.deployed is not None
    assert plan.deployed.app_compose == ""


def test_what_was_removed_is_not_deployed(cloud: Path) -> None:
    (cloud / "state.json").write_text('{"status":"REMOVED"}')
    assert planned(cloud).deployed is None


def test_compares_with_an_earlier_plan(cloud: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "plan.json"
    earlier.write_bytes(msgspec.json.encode(planned(cloud)))
    assert planned(cloud, against=str(earlier)).outcome == "nothing"
    write_project(cloud, gcp_config={"machine_type": "c3-standard-8", "future": 1})
    plan = planned(cloud, against=str(earlier))
    assert [one.path for one in plan.changes] == ["machine.machine_type"]
    old = json.loads(earlier.read_text())
    del old["machine"]["zone"]
    old["deployed"] = None
    assert read_plan(json.dumps(old).encode()).machine.get("zone") is None


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"{", "plan.file.syntax"),
        (b"[]", "plan.file.version"),
        (b'{"plan_version":2}', "plan.file.version"),
        (b'{"plan_version":1}', "plan.file.format"),
    ],
)
def test_refuses_what_is_no_plan(raw: bytes, code: str) -> None:
    with refuses(code, ConfigError):
        read_plan(raw)


# ---- files ----


def test_a_directory_without_a_project_is_named(tmp_path: Path) -> None:
    with refuses("plan.project.missing", ConfigError):
        planned(tmp_path)


def test_a_file_that_the_project_names_must_be_there(cloud: Path) -> None:
    (cloud / "docker-compose.yaml").unlink()
    with refuses("plan.file.missing", ConfigError):
        planned(cloud)


def test_a_file_that_is_a_directory_cannot_be_read(cloud: Path) -> None:
    (cloud / "prelaunch.sh").mkdir()
    with refuses("plan.file.unreadable", ConfigError):
        planned(cloud)


def test_n06_a_file_that_is_not_text_is_refused(cloud: Path) -> None:
    (cloud / "prelaunch.sh").write_bytes(b"\xff")
    with refuses("plan.file.encoding", ConfigError):
        planned(cloud)


def test_a_file_beyond_its_limit_is_refused(cloud: Path) -> None:
    (cloud / "prelaunch.sh").write_bytes(b"#" * (1 << 20) + b"#")
    with refuses("plan.file.too_large", ConfigError):
        planned(cloud)


def test_a_project_may_have_neither_script_nor_env(cloud: Path) -> None:
    write_project(cloud, prelaunch_script="", env_file="")
    assert planned(cloud).outcome == "changes"


# ---- enclaves ----


@pytest.fixture
def enclave(tmp_path: Path) -> Path:
    return write_project(tmp_path / "demo", platform="nitro")


def test_plans_an_enclave(enclave: Path) -> None:
    builder = FakeBuilder()
    plan = planned(enclave, builder)
    assert builder.asked == [PINNED]
    assert plan.compose.compose_hash == plan.image.os_image_hash
    assert (plan.compose.form, plan.config_disk) == ("image", None)
    assert set(plan.image.registers) == {"PCR0", "PCR1", "PCR2"}
    assert [(one.name, one.payload) for one in plan.events] == [("app-id", APP_ID)]
    device = plan.approval.calls[2]
    assert device.arguments[0].value == "0x" + sha256(b"i").hexdigest()


def test_an_enclave_without_an_app_id_has_none_yet(enclave: Path) -> None:
    write_project(enclave, platform="nitro", app_id="")
    plan = planned(enclave)
    assert (plan.app.app_id, plan.app.source, plan.events) == ("", "none", ())
    assert [call.to for call in plan.approval.calls] == ["", "", ""]


def test_an_enclaves_device_id_may_be_given(enclave: Path) -> None:
    call = planned(enclave, device_id=b"\x11" * 32).approval.calls[2]
    assert call.arguments[0].value == "0x" + "11" * 32


def test_several_services_are_refused_with_the_reason(enclave: Path) -> None:
    write_project(enclave, compose=ENCLAVE + "  db:\n    image: x\n", platform="nitro")
    with refuses("lint.nitro.services", PolicyDenied):
        planned(enclave)


@pytest.mark.parametrize(
    ("compose", "code"),
    [
        ("services:\n  web:\n    image: nginx\n", "lint.image.digest"),
        (ENCLAVE + "    ports: ['80:80']\n    environment: [A=x]\n", "lint.nitro.key"),
        ("services: [", "lint.yaml.syntax"),
    ],
)
def test_a_service_that_is_no_enclave_is_refused(enclave: Path, compose: str, code: str) -> None:
    write_project(enclave, compose=compose, platform="nitro")
    with refuses(code, PolicyDenied):
        planned(enclave)


def test_variables_never_reach_an_enclave_that_takes_none(enclave: Path) -> None:
    (enclave / ".env").write_text("A=x")
    assert [one.code for one in planned(enclave).findings] == ["lint.nitro.env"]


def test_the_project_may_name_a_layout_or_a_tar(enclave: Path) -> None:
    tar = enclave / "image.tar"
    tar.write_bytes(b"tar")
    digest = "sha256:" + "cd" * 32
    for image, asked in (
        ("image.tar", str(tar)),
        (f"image.tar@{digest}", f"{tar}@{digest}"),
        (f"name@{digest}", f"name@{digest}"),
    ):
        builder = FakeBuilder()
        write_project(enclave, platform="nitro", nitro_config={"image": image})
        planned(enclave, builder)
        assert builder.asked == [asked]


@pytest.mark.parametrize("image", ["gone.tar", "nginx:latest"])
def test_n73_an_image_that_is_neither_file_nor_digest_is_refused(enclave: Path, image: str) -> None:
    write_project(enclave, platform="nitro", nitro_config={"image": image})
    with refuses("plan.nitro.image", ConfigError):
        planned(enclave)


# ---- a Dockerfile ----

DOCKER = """#!/bin/sh
echo "$@" >> "$(dirname "$0")/calls"
[ "$1" = image ] && printf saved > "$4"
exit %d
"""


def docker(directory: Path, patch: pytest.MonkeyPatch, code: int = 0) -> Path:
    place = directory / "bin"
    place.mkdir(exist_ok=True)
    (place / "docker").write_text(DOCKER % code)
    (place / "docker").chmod(0o755)
    patch.setenv("PATH", f"{place}:/usr/bin:/bin")
    return place


def test_a_dockerfile_is_built_where_docker_is(enclave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = docker(enclave, monkeypatch)
    write_project(enclave, compose="services:\n  web:\n    build: .\n", platform="nitro")
    builder = FakeBuilder()
    plan = planned(enclave, builder)
    assert [one.code for one in plan.findings] == ["lint.nitro.dockerfile"]
    assert not Path(builder.asked[0]).exists()
    calls = (place / "calls").read_text().splitlines()
    assert calls[0].endswith("--project-name dstack-plan build -- web")
    assert calls[1].endswith("dstack-plan-web")


def test_a_build_keeps_the_name_that_it_has(enclave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = docker(enclave, monkeypatch)
    write_project(
        enclave, compose="services:\n  web:\n    build: .\n    image: demo:latest\n", platform="nitro"
    )
    assert planned(enclave).outcome == "changes"
    assert (place / "calls").read_text().splitlines()[1].endswith("-- demo:latest")
    write_project(
        enclave, compose="services:\n  web:\n    build: .\n    image: demo:$TAG\n", platform="nitro"
    )
    with refuses("lint.image.variable", PolicyDenied):
        planned(enclave)


def test_a_docker_without_compose_is_explained(enclave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = docker(enclave, monkeypatch)
    (place / "docker").write_text("#!/bin/sh\necho 'unknown flag: --file' >&2\nexit 125\n")
    write_project(enclave, compose="services:\n  web:\n    build: .\n", platform="nitro")
    with refuses("plan.nitro.docker", ConfigError):
        planned(enclave)


def test_a_dockerfile_without_docker_is_explained(enclave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(enclave))
    write_project(enclave, compose="services:\n  web:\n    build: .\n", platform="nitro")
    with refuses("plan.nitro.docker", ConfigError):
        planned(enclave)


def test_a_build_that_fails_says_so(enclave: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = docker(enclave, monkeypatch, code=3)
    write_project(enclave, compose="services:\n  web:\n    build: .\n", platform="nitro")
    with refuses("plan.nitro.build", UnavailableError):
        planned(enclave)
    (place / "docker").write_text("not a program")
    with refuses("plan.nitro.build", UnavailableError):
        planned(enclave)
