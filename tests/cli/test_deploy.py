"""The commands about deployments, over a cloud in memory: what they ask, print, leave behind and end with."""

import json
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from cli.lifecycle import last_lines
from cli.main import cli
from functions.deploy.cloud import DeniedError, LogPage, TransientCloudError
from functions.deploy.engine import Engine
from functions.deploy.record import Step
from functions.deploy.request import Upload
from functions.deploy.service import DeploymentService
from functions.deploy.store import ConflictError, NotFoundError
from functions.plan.standing import NOT_FINAL
from functions.stores.sqlite import FileBlobs, SqliteStore
from shared.compose.findings import error
from shared.compose.state import read_state
from shared.errors import ConfigError, DstackError, InvalidEvidence, PolicyDenied, ProtocolError
from tests.functions.deploy.memory_cloud import CALL, MemoryCloud, MemoryTools, some_plan
from tests.functions.plan.projects import write_os_image, write_project
from tests.shared.refusal import refuses


class Site:
    """A project, and the cloud that its deployments go to."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.project = write_project(
            place / "web", gcp_config={"project": "my-project", "instance_name": "web"}
        )
        self.cloud = MemoryCloud(boot_polls=0)
        self.tools = MemoryTools()
        self.now = 1_800_000_000
        self.pace = 1
        self.engines: list[Engine] = []

    def tick(self) -> int:
        """Time flies: nobody waits for a poll."""
        self.now += self.pace
        return self.now

    def parts(self, *_: object) -> tuple[DeploymentService, Engine]:
        store = SqliteStore(self.place / "store.sqlite")
        blobs = FileBlobs(self.place / "blobs")
        clouds = {"gcp-tdx": self.cloud, "local": self.cloud}
        service = DeploymentService(store, blobs, clouds, lambda _name, _seconds: None, self.tick)
        return service, Engine(store, blobs, clouds, self.tools, clock=self.tick, holder="cli")

    def run(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, ["-C", str(self.project), *arguments])
        if isinstance(result.exception, DstackError):
            raise result.exception
        assert result.exit_code == code, result.output
        return result

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        document = json.loads(self.run(*arguments, "--json", code=code).stdout)
        assert isinstance(document, dict)
        return document


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    made = Site(tmp_path)
    write_os_image(tmp_path / "images")
    (tmp_path / "config.json").write_text(json.dumps({"image_search_paths": [str(tmp_path / "images")]}))
    monkeypatch.setenv("DSTACK_CLOUD_CONFIG", str(tmp_path / "config.json"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("cli.runtime.parts", made.parts)
    monkeypatch.setattr("functions.deploy.runner.LONGEST_WAIT", 0)
    return made


# ---- deploy ----


def test_deploys_and_says_what_was_proved(site: Site) -> None:
    result = site.run("deploy")
    assert "web on gcp-tdx: running" in result.stdout
    assert "simulated evidence of what was planned" in result.stdout
    assert "launch -> await_attestation" in result.stderr


def test_leaves_the_state_and_the_files_that_upstream_leaves(site: Site) -> None:
    site.run("deploy")
    state = read_state((site.project / "state.json").read_bytes())
    assert (state.platform, state.instance_name, state.external_ip) == ("gcp", "web", "192.0.2.7")
    assert state.deployed is not None
    assert state.deployed.plan_id == some_plan().plan_id
    assert (site.project / "shared" / "app-compose.json").exists()


def test_prints_one_object_where_json_is_wanted(site: Site) -> None:
    document = site.json("deploy")
    assert (document["status"], document["exit_code"], document["settled"]) == ("running", 0, True)
    assert document["running"]["attested_at"] > 0
    assert site.run("list", "--json").stdout.startswith("{")


def test_a_second_deploy_needs_a_word(site: Site) -> None:
    site.run("deploy")
    with refuses("deploy.exists", ConflictError):
        site.run("deploy")
    site.run("deploy", "--delete")


def test_goes_on_with_what_was_interrupted(site: Site) -> None:
    def interrupt(call: str, when: str) -> None:
        if call == "create instance" and when == "after":
            raise KeyboardInterrupt

    site.cloud.on_call = interrupt
    CliRunner().invoke(cli, ["-C", str(site.project), "deploy"])
    site.cloud.on_call = lambda _call, _when: None
    site.now += 1000
    site.run("deploy")
    assert site.cloud.made.count(("instance", "web-instance")) == 1


def test_other_files_are_not_taken_for_the_interrupted_ones(site: Site) -> None:
    site.cloud.boot_polls = 10**6
    site.pace = 0
    site.run("deploy", "--timeout", "1", code=6)
    site.pace = 1
    (site.project / "app.json").write_text((site.project / "app.json").read_text() + "\n")
    with refuses("deploy.busy", ConflictError):
        site.run("deploy", "--delete")


def test_other_files_may_take_the_place_of_those_that_wait_for_governance(site: Site) -> None:
    site.tools.missing = (CALL,)
    site.run("deploy", code=5)
    (site.project / "app.json").write_text((site.project / "app.json").read_text() + "\n")
    site.tools.missing = ()
    with refuses("deploy.exists", ConflictError):
        site.run("deploy")
    assert "running" in site.run("deploy", "--delete").stdout


def test_a_changed_env_is_not_passed_over_in_silence(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def seal(upload: Upload, *_: object) -> Upload:
        value = (site.project / ".env").read_bytes().partition(b"=")[2]
        return msgspec.structs.replace(upload, encrypted_env=bytes(range(128, 188)) + value)

    def stored() -> bytes:
        service, _ = site.parts()
        return FileBlobs(site.place / "blobs").get(service.get("web").files.encrypted_env, 1 << 10)

    monkeypatch.setattr("cli.deploy.with_env", seal)
    (site.project / ".env").write_text("API_TOKEN=leaked")
    site.tools.missing = (CALL,)
    assert "going on" not in site.run("deploy", code=5).stderr

    (site.project / ".env").write_text("API_TOKEN=rotated")
    assert "with .env as it was then" in site.run("deploy", code=5).stderr
    assert stored().endswith(b"leaked")
    assert "with .env as it was then" in site.run("deploy", "--delete", code=5).stderr
    site.run("stop")
    assert "going on" not in site.run("deploy", "--delete", code=5).stderr
    assert stored().endswith(b"rotated")


def test_another_cloud_is_not_taken_for_the_interrupted_one(site: Site) -> None:
    site.cloud.boot_polls = 10**6
    site.pace = 0
    site.run("deploy", "--timeout", "1", code=6)
    site.pace = 1
    with refuses("deploy.cloud_change", ConflictError):
        site.run("deploy", "--local", "--delete")


def test_a_deployment_that_is_removed_meanwhile_is_no_success(site: Site) -> None:
    def remove(call: str, when: str) -> None:
        if call == "create instance" and when == "before":
            service, _ = site.parts()
            service.remove("web")

    site.cloud.on_call = remove
    assert site.json("deploy", code=1)["step"] == "removed"


def test_what_failed_before_anything_was_made_is_deployed_again_as_the_hint_says(site: Site) -> None:
    site.cloud.findings = (error("gcp.quota", "CPUS", "has 0 of 4 left"),)
    assert "then deploy again" in site.run("deploy", code=1).stdout
    site.cloud.findings = ()
    assert "running" in site.run("deploy").stdout


def test_a_removal_that_is_refused_ends_and_may_be_asked_for_again(site: Site) -> None:
    site.run("deploy")

    def deny(call: str, when: str) -> None:
        if call.startswith("delete") and when == "before":
            raise DeniedError("memory.denied", "the role may not delete", "let it")

    site.cloud.on_call = deny
    assert "let it" in site.run("remove", "--yes", code=1).stdout
    site.cloud.on_call = lambda _call, _when: None
    site.run("remove", "--yes")
    assert site.cloud.things == {}


def test_what_governance_must_do_is_printed(site: Site) -> None:
    site.tools.missing = (CALL,)
    result = site.run("deploy", code=5)
    assert "call 1: addComposeHash" in result.stdout
    assert "NEEDS APPROVAL" in result.stdout
    assert site.cloud.made == []
    assert site.run("deploy", code=5).stdout == result.stdout
    site.tools.missing = ()
    assert "running" in site.run("deploy").stdout  # at once, not when the next look was due


def test_the_calls_stand_in_the_json_too(site: Site) -> None:
    site.tools.missing = (CALL,)
    document = site.json("deploy", code=5)
    assert document["calls"][0]["calldata"] == CALL.calldata


def test_waits_for_governance_where_it_is_told_to(site: Site) -> None:
    site.tools.missing = (CALL,)
    asked = [0]
    ask = site.tools.ask_approval

    def allow_later(work: Any) -> Any:
        asked[0] += 1
        if asked[0] == 3:
            site.tools.missing = ()
        return ask(work)

    site.tools.ask_approval = allow_later  # type: ignore[method-assign] # the chain changes its mind
    site.run("deploy", "--wait-approval")
    assert asked[0] == 3


def test_a_grant_that_is_not_final_is_told_without_the_calls_that_were_made(site: Site) -> None:
    site.tools.missing = (CALL,)
    site.run("deploy", code=5)
    site.tools.missing, site.tools.waits_for = (), NOT_FINAL
    result = site.run("deploy", code=5)
    assert "call 1" not in result.stdout
    assert f"waits [{NOT_FINAL}]" in result.stdout
    assert "NEEDS APPROVAL  run this again, or with --wait-approval" in result.stdout
    assert site.json("deploy", code=5)["calls"] == []
    assert NOT_FINAL in site.run("status").stdout
    site.tools.waits_for = ""
    assert "running" in site.run("deploy").stdout


def test_an_approval_by_the_word_of_one_endpoint_says_so(site: Site) -> None:
    site.tools.asked = 1
    assert "by the word of one endpoint" in site.run("deploy").stdout
    assert "  approval       by the word of one endpoint" in site.run("status").stdout


def test_a_wait_that_is_over_loses_nothing(site: Site) -> None:
    site.cloud.boot_polls = 10**6
    site.pace = 0
    result = site.run("deploy", "--timeout", "1", code=6)
    site.pace = 1
    assert "TIMED OUT" in result.stdout
    site.cloud.boot_polls = 0
    assert "running" in site.run("deploy").stdout


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (InvalidEvidence("deploy.evidence.workload", "another workload"), 3),
        (PolicyDenied("tdx.tcb", "out of date"), 3),
        (ProtocolError("deploy.evidence.answer", "no evidence"), 1),
    ],
)
def test_the_exit_code_tells_a_refusal_from_a_failure(site: Site, fault: DstackError, code: int) -> None:
    site.tools.attested = fault
    result = site.run("deploy", code=code)
    assert fault.code in result.stdout
    assert "what to do" in result.stdout


def test_n80_another_machine_than_ordered_is_refused(site: Site) -> None:
    site.cloud.machine = {"confidential": ""}
    result = site.run("deploy", code=3)
    assert "deploy.machine.confidential" in result.stdout
    state = read_state((site.project / "state.json").read_bytes())
    assert state.status == "NOT_FOUND"


def test_a_hint_of_the_cloud_is_shown(site: Site) -> None:
    def refuse(call: str, when: str) -> None:
        if call == "create instance" and when == "before":
            raise DeniedError("memory.quota", "no quota is left", "ask for more")

    site.cloud.on_call = refuse
    assert "ask for more" in site.run("deploy", code=1).stdout


def test_a_nitrotpm_project_is_told_what_to_change(site: Site) -> None:
    write_project(site.project, platform="aws")
    with refuses("deploy.platform", ConfigError) as caught:
        site.run("deploy")
    assert '"nitro"' in caught.value.message


def test_n74_plaintext_variables_leave_no_machine(site: Site) -> None:
    (site.project / ".env").write_text("API_TOKEN=very-secret\n")
    with refuses("env.signer.unpinned", PolicyDenied):
        site.run("deploy")
    stored = b"".join(
        path.read_bytes() for path in site.place.rglob("*") if path.is_file() and path.name != ".env"
    )
    assert b"very-secret" not in stored


# ---- afterwards ----


def test_status_shows_what_the_cloud_says_and_what_was_proved(site: Site) -> None:
    site.run("deploy")
    shown = site.run("status").stdout
    assert "attested" in shown
    assert "RUNNING, as the cloud says" in shown
    assert site.json("status")["machine"]["confidential"] == "TDX"


def test_status_without_the_cloud_is_still_a_status(site: Site) -> None:
    site.run("deploy")

    def busy(_call: str, _when: str) -> None:
        raise TransientCloudError("memory.busy", "too many requests")

    site.cloud.on_call = busy
    result = site.run("status")
    assert "running" in result.stdout
    assert "too many requests" in result.stderr


@pytest.mark.parametrize("command", ["status", "stop", "start", "logs"])
def test_nothing_deployed_is_said_to_be(site: Site, command: str) -> None:
    with refuses("deploy.unknown", NotFoundError):
        site.run(command)


def test_stops_starts_and_removes(site: Site) -> None:
    site.run("deploy")
    assert "stopped" in site.run("stop").stdout
    assert read_state((site.project / "state.json").read_bytes()).status == "TERMINATED"
    assert "running" in site.run("start").stdout
    assert "removed" in site.run("remove", "--yes").stdout
    assert site.cloud.things == {}
    state = read_state((site.project / "state.json").read_bytes())
    assert (state.status, state.deployed, state.external_ip) == ("REMOVED", None, "")


def test_a_deployment_may_be_named(site: Site, tmp_path: Path) -> None:
    site.run("deploy")
    before = (site.project / "state.json").read_bytes()
    other = tmp_path / "elsewhere"
    other.mkdir()
    result = CliRunner().invoke(cli, ["-C", str(other), "status", "--name", "web"])
    assert result.exit_code == 0
    assert (site.project / "state.json").read_bytes() == before
    assert not (other / "state.json").exists()


def test_lists_what_is_there(site: Site) -> None:
    site.run("deploy")
    assert site.run("list").stdout.split() == ["web", "gcp-tdx", "running"]
    site.run("remove", "--yes")
    assert site.run("list").stdout == ""
    assert "removed" in site.run("list", "--all").stdout


@pytest.mark.parametrize(("count", "lines"), [("3", 3), ("0", 0), ("100", 10)])
def test_prints_the_last_lines_of_the_console(site: Site, count: str, lines: int) -> None:
    site.run("deploy")
    assert site.run("logs", "-n", count).stdout.count("\n") == lines


def test_a_long_console_is_never_held_at_once() -> None:
    class Console:
        """Ten million lines, in pages."""

        def __init__(self) -> None:
            self.pages = 0

        def logs(self, _name: str, cursor: str) -> tuple[str, str]:
            at = int(cursor or 0)
            self.pages += 1
            return ("line\n" * 1000, str(at + 1)) if at < 500 else ("", str(at))

    console = Console()
    tail, cursor = last_lines(console, "web", 5)  # type: ignore[arg-type] # all that it asks for
    assert (tail, cursor, console.pages) == ("line\n" * 5, "500", 501)


def test_a_line_may_end_in_the_next_page() -> None:
    class Console:
        def logs(self, _name: str, cursor: str) -> tuple[str, str]:
            pages = {"": ("one\ntw", "1"), "1": ("o\nthree", "2"), "2": ("", "2")}
            return pages[cursor]

    assert last_lines(Console(), "web", 2) == ("two\nthree", "2")  # type: ignore[arg-type] # as above


# ---- fw ----


def test_a_port_is_opened_to_everybody_only_on_purpose(site: Site) -> None:
    site.run("deploy")
    assert "--anywhere" in site.run("fw", "allow", "443", code=2).stderr
    with refuses("deploy.request.anywhere", ProtocolError):
        site.run("fw", "allow", "443", "--source", "0.0.0.0/0")
    assert "allow tcp 443" in site.run("fw", "allow", "443", "--anywhere").stdout


@pytest.mark.parametrize(
    ("port", "code"), [("0", "fw.port"), ("65536", "fw.port"), ("x", "fw.port"), ("1/icmp", "fw.protocol")]
)
def test_a_port_that_is_none_is_refused(site: Site, port: str, code: str) -> None:
    with refuses(code, ConfigError):
        site.run("fw", "remove", port)


def test_denies_from_everywhere_by_itself(site: Site) -> None:
    site.run("deploy")
    assert site.run("fw", "deny", "53/udp").stdout == "deny udp 53 from 0.0.0.0/0\n"
    assert "no rule" in site.run("fw", "remove", "53/udp").stdout


# ---- doctor ----


def test_doctor_finds_nothing_wrong_with_a_good_project(site: Site) -> None:
    result = site.run("doctor")
    assert "nothing would stop this deployment" in result.stdout
    assert site.cloud.made == []
    assert list(site.parts()[0].list().deployments) == []


def test_doctor_shows_what_the_cloud_lacks(site: Site) -> None:
    site.cloud.findings = (error("gcp.quota", "CPUS", "has 0 of 4 left: ask for more"),)
    result = site.run("doctor", code=3)
    assert "gcp.quota" in result.stdout


def test_doctor_prints_the_command_that_mends_it(site: Site) -> None:
    missing = error("gcp.bucket", "gcp_config.bucket", "is not there")
    site.cloud.findings = (msgspec.structs.replace(missing, detail="make it"),)
    assert "| make it\n" in site.run("doctor", code=3).stdout


def test_doctor_goes_on_behind_the_first_problem(site: Site) -> None:
    (site.project / "docker-compose.yaml").write_text("services:\n  web:\n    image: nginx\n")
    (site.project / ".env").write_text("A=1\n")

    def refuse(_call: str, _when: str) -> None:
        raise DeniedError("gcp.credentials", "there are none", "gcloud auth application-default login")

    site.cloud.on_call = refuse
    document = site.json("doctor", code=3)
    codes = {one["code"] for one in document["findings"] if one["severity"] == "error"}
    assert {"lint.image.digest", "gcp.credentials", "env.signer.unpinned"} <= codes
    assert "gcloud auth" in json.dumps(document)


def test_what_is_stored_is_its_owners_alone(site: Site) -> None:
    site.run("deploy")
    assert stat.S_IMODE((site.place / "blobs").stat().st_mode) == 0o700


def test_the_engine_rests_where_the_command_says(site: Site) -> None:
    site.run("deploy")
    assert site.parts()[0].get("web").step is Step.RUNNING


def test_a_console_does_not_steer_the_terminal(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.run("deploy")
    monkeypatch.setattr(
        site.cloud,
        "logs",
        lambda _work, cursor="", _limit=0: LogPage("" if cursor else "a\x1b[2Jb\r\nc\td\n", "1"),
    )
    assert site.run("logs").stdout == "a\\x1b[2Jb\nc\td\n"


def test_a_compose_file_alone_is_enough(site: Site) -> None:
    compose = (site.project / "docker-compose.yaml").read_text()
    place = site.place / "My Site"
    place.mkdir()
    (place / "compose.yaml").write_text(compose)
    site.project = place
    result = site.run("deploy")
    assert "made" in result.stderr
    assert "dstack-my-site on gcp-tdx: running" in result.stdout
    document = json.loads((place / "app.json").read_text())
    assert (document["docker_compose_file"], document["public_logs"]) == ("compose.yaml", False)
    before = (place / "app.json").read_bytes()
    site.run("deploy", "--delete")
    assert (place / "app.json").read_bytes() == before


def test_a_directory_without_anything_is_no_project(site: Site) -> None:
    site.project = site.place / "empty"
    site.project.mkdir()
    with refuses("plan.project.missing", ConfigError):
        site.run("deploy")
    assert list(site.project.iterdir()) == []
