"""Start and stop, with a docker that writes down its calls and a real bash."""

import json
import os
import signal
from pathlib import Path

import pytest

from shared.errors import ConfigError, DstackError, PolicyDenied, StorageError, UnavailableError
from tests.enclave.compose.conftest import SECRET, SERVICES, Guest
from tests.shared.refusal import refuses

UP = "docker compose up --remove-orphans -d --build"
CHECKED = "docker compose config --quiet"
STARTED = [CHECKED, UP, "docker image prune -af", "docker volume prune -f"]
LOGIN = {"docker_config": {"registry": "ghcr.io", "username": "me", "token_key": "TOKEN"}}


def test_starts_in_order(guest: Guest) -> None:
    guest.lifecycle().start()
    assert guest.verbs == STARTED
    assert guest.told == [("boot.progress", "starting containers"), ("boot.progress", "done")]


def test_stops_and_keeps_the_containers(guest: Guest) -> None:
    guest.lifecycle().stop()
    assert guest.verbs == ["docker compose stop"]


def test_the_compose_file_is_the_measured_one_at_each_boot(guest: Guest) -> None:
    path = guest.work / "docker-compose.yaml"
    path.write_text("services:\n  evil:\n    image: evil\n")
    guest.lifecycle().start()
    assert path.read_text() == SERVICES


def test_n70_a_link_in_the_place_of_the_compose_file_leads_nowhere(guest: Guest, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("kept")
    (guest.work / "docker-compose.yaml").symlink_to(victim)
    (guest.work / ".docker-compose.yaml.new").symlink_to(victim)
    guest.lifecycle().start()
    assert victim.read_text() == "kept"
    assert (guest.work / "docker-compose.yaml").read_text() == SERVICES


def test_nothing_is_removed_before_the_file_was_understood(guest: Guest) -> None:
    guest.fail("config")
    with refuses("compose.invalid", UnavailableError):
        guest.lifecycle().start()
    assert guest.verbs == [CHECKED]
    assert guest.told == [("boot.error", "validate failed [compose.invalid]")]


def test_a_start_that_fails_is_told_in_upstreams_words_and_removes_nothing(guest: Guest) -> None:
    guest.fail("up")
    with refuses("compose.start", UnavailableError):
        guest.lifecycle().start()
    assert guest.verbs == [CHECKED, UP]
    assert guest.told[-1] == ("boot.error", "failed to start containers")


def test_a_prune_that_fails_is_told_and_the_app_runs(
    guest: Guest, capsys: pytest.CaptureFixture[str]
) -> None:
    guest.fail("prune")
    guest.lifecycle().start()
    assert guest.verbs == STARTED
    assert "compose.prune_failed" in capsys.readouterr().out


def test_a_failing_step_is_named_in_the_journal(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    guest.fail("up")
    with pytest.raises(DstackError):
        guest.lifecycle().start()
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (failed,) = (event for event in events if event.get("status") == "failed")
    assert (failed["step"], failed["code"]) == ("start", "compose.start")


def test_a_stop_that_fails_is_an_error(guest: Guest) -> None:
    guest.fail("stop")
    with refuses("compose.stop", UnavailableError):
        guest.lifecycle().stop()


@pytest.mark.parametrize(
    "fields",
    [
        {"docker_compose_file": None},
        {"docker_compose_file": ""},
        {"snapshotter": "overlayfs"},
        {"runner": "bash"},
        {"runner": "nerdctl-compose", "docker_compose_file": "services:\n  web:\n    build: .\n"},
    ],
)
def test_refuses_what_cannot_run_before_anything_is_changed(guest: Guest, fields: dict[str, object]) -> None:
    with refuses("compose.runner", ConfigError):
        guest.lifecycle(**fields).start()
    assert guest.calls == []
    assert not (guest.work / "docker-compose.yaml").exists()


# --- scripts ---


def test_what_the_pre_launch_script_exports_reaches_compose(guest: Guest) -> None:
    script = 'export A="two\nlines" B=$TOKEN\nC=not-exported\n'
    guest.lifecycle({"TOKEN": SECRET}, pre_launch_script=script).start()
    (up,) = (call for call in guest.calls if "up" in call.argv)
    assert (up.environment["A"], up.environment["B"]) == ("two\nlines", SECRET)
    assert "C" not in up.environment
    assert guest.told[0] == ("boot.progress", "pre-launch")


@pytest.mark.parametrize("script", ["false\n", "exit 3\n", "echo $UNSET\n", "false | true\n", "if\n"])
def test_a_pre_launch_script_that_fails_ends_the_start(guest: Guest, script: str) -> None:
    with refuses("compose.script.failed", UnavailableError):
        guest.lifecycle(pre_launch_script=script).start()
    assert guest.calls == []
    assert guest.told[-1] == ("boot.error", "pre-launch failed [compose.script.failed]")


def test_a_pre_launch_script_that_exits_ends_the_start(guest: Guest) -> None:
    with refuses("compose.script.exited", PolicyDenied):
        guest.lifecycle(pre_launch_script="exit 0\n").start()
    assert guest.calls == []


def test_n72_a_pre_launch_script_is_no_gate_for_what_runs_already(guest: Guest) -> None:
    """It ends this start. Containers that dockerd started again by itself are up, and it stops none."""
    (guest.work / "docker-compose.yaml").write_text("old")
    with pytest.raises(DstackError):
        guest.lifecycle(pre_launch_script="exit 1\n").start()
    assert (guest.work / "docker-compose.yaml").read_text() == SERVICES
    assert not [verb for verb in guest.verbs if "stop" in verb or "rm" in verb]


def test_n72_the_secrets_were_there_before_the_pre_launch_script_was_asked(guest: Guest) -> None:
    seen = guest.directory / "seen"
    with pytest.raises(DstackError):
        guest.lifecycle({"TOKEN": SECRET}, pre_launch_script=f'echo "$TOKEN" > {seen}\nexit 1\n').start()
    assert seen.read_text().strip() == SECRET


def test_an_empty_pre_launch_script_is_one(guest: Guest) -> None:
    guest.lifecycle(pre_launch_script="").start()
    assert guest.told[0] == ("boot.progress", "pre-launch")
    assert guest.verbs == STARTED


def test_init_scripts_are_sourced_in_one_row_and_know_no_secret(guest: Guest) -> None:
    seen = guest.directory / "seen"
    scripts = ["export A=1\n", f'echo "$A-${{TOKEN:-none}}" > {seen}\n']
    guest.lifecycle({"TOKEN": SECRET}, init_script=scripts).run_init_scripts()
    assert seen.read_text().strip() == "1-none"
    assert guest.told == [("boot.progress", "init-script")]


def test_an_init_script_that_fails_stops_those_after_it(guest: Guest) -> None:
    seen = guest.directory / "seen"
    with refuses("compose.script.failed", UnavailableError):
        guest.lifecycle(init_script=["false\n", f"touch {seen}\n"]).run_init_scripts()
    assert not seen.exists()


def test_without_init_scripts_nothing_is_told(guest: Guest) -> None:
    guest.lifecycle().run_init_scripts()
    assert guest.told == []


def test_a_process_that_a_script_leaves_behind_holds_nothing_up(guest: Guest) -> None:
    held = guest.directory / "held"
    script = f"(echo $BASHPID > {held}; exec sleep 600 >/dev/null 2>&1 </dev/null) &\n"
    try:
        guest.lifecycle(pre_launch_script=script).start()
        assert guest.verbs == STARTED
    finally:
        _end(held)


def _end(held: Path) -> None:
    while not (held.exists() and held.read_text().strip()):
        pass
    os.kill(int(held.read_text()), signal.SIGKILL)


# --- secrets ---


def test_n74_no_secret_is_an_argument(guest: Guest) -> None:
    guest.lifecycle({"TOKEN": SECRET}, pre_launch_script="true\n", **LOGIN).start()
    assert guest.calls
    assert not [call.argv for call in guest.calls if SECRET in " ".join(call.argv)]


def test_n74_the_app_alone_gets_its_variables(guest: Guest) -> None:
    guest.lifecycle({"TOKEN": SECRET}, **LOGIN).start()
    knowing = [call.argv[1:] for call in guest.calls if SECRET in call.environment.values()]
    assert {argv[0] for argv in knowing} == {"compose"}
    assert {call.argv[1] for call in guest.calls} == {"login", "compose", "image", "volume"}


def test_n74_nothing_that_is_printed_shows_a_value(guest: Guest, capsys: pytest.CaptureFixture[str]) -> None:
    guest.fail("up")
    with pytest.raises(DstackError) as caught:
        guest.lifecycle({"TOKEN": SECRET}, **LOGIN).start()
    printed = capsys.readouterr()
    assert SECRET not in printed.out + printed.err + str(caught.value) + str(guest.told)


def test_n74_an_app_shows_names_alone(guest: Guest) -> None:
    shown = repr(guest.app({"TOKEN": SECRET}))
    assert "TOKEN" in shown
    assert SECRET not in shown


def test_n74_a_value_that_no_program_takes_is_not_repeated(guest: Guest) -> None:
    with refuses("compose.program", ConfigError) as caught:
        guest.lifecycle({"TOKEN": f"{SECRET}\0"}).start()
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error)
        error = error.__cause__


def test_only_named_variables_of_the_guest_reach_a_program(guest: Guest) -> None:
    guest.environment["GUEST_ONLY"] = "x"
    guest.lifecycle().start()
    assert not [call for call in guest.calls if "GUEST_ONLY" in call.environment]


# --- registry ---


def test_logs_in_before_it_pulls_with_the_token_on_standard_input(guest: Guest) -> None:
    guest.lifecycle({"TOKEN": SECRET}, **LOGIN).start()
    first = guest.calls[0]
    assert first.argv == ["docker", "login", "--username", "me", "--password-stdin", "ghcr.io"]
    assert first.stdin == SECRET
    kept = guest.directory / "credentials"
    assert {call.environment["DOCKER_CONFIG"] for call in guest.calls} == {str(kept)}
    assert kept.stat().st_mode & 0o777 == 0o700


def test_nerdctl_logs_in_with_itself(guest: Guest) -> None:
    guest.lifecycle({"TOKEN": SECRET}, runner="nerdctl-compose", **LOGIN).start()
    assert guest.calls[0].argv[:2] == ["nerdctl", "login"]


def test_without_a_token_nobody_logs_in(guest: Guest) -> None:
    guest.lifecycle(docker_config={"registry": "ghcr.io", "username": "me"}).start()
    assert guest.verbs == STARTED


@pytest.mark.parametrize(
    "config",
    [
        {"username": "me", "token_key": "OTHER"},
        {"token_key": "TOKEN"},
        {"username": "--help", "token_key": "TOKEN"},
        {"username": "me", "registry": "-x", "token_key": "TOKEN"},
        {"username": "me", "registry": "a b", "token_key": "TOKEN"},
    ],
)
def test_a_login_that_cannot_be_made_ends_the_start(guest: Guest, config: dict[str, str]) -> None:
    with refuses("compose.login.config", ConfigError):
        guest.lifecycle({"TOKEN": SECRET}, docker_config=config).start()
    assert guest.calls == []


def test_credentials_that_cannot_be_kept_end_the_start(guest: Guest) -> None:
    (guest.directory / "credentials").write_text("in the way")
    with refuses("compose.login.keep", StorageError):
        guest.lifecycle({"TOKEN": SECRET}, **LOGIN).start()
    assert guest.calls == []


def test_a_login_that_is_refused_ends_the_start(guest: Guest) -> None:
    guest.fail("login")
    with refuses("compose.login", UnavailableError):
        guest.lifecycle({"TOKEN": SECRET}, **LOGIN).start()
    assert len(guest.calls) == 1


# --- the other runners ---


def test_bash_runs_the_measured_script_with_its_variables(guest: Guest) -> None:
    seen = guest.directory / "seen"
    script = f'echo "$TOKEN" > {seen}\n'
    lifecycle = guest.lifecycle({"TOKEN": SECRET}, runner="bash", bash_script=script)
    lifecycle.start()
    assert seen.read_text().strip() == SECRET
    assert guest.told == [("boot.progress", "running main script"), ("boot.progress", "done")]
    lifecycle.stop()
    assert guest.calls == []


def test_bash_is_asked_first_whether_it_understands_the_script(guest: Guest) -> None:
    seen = guest.directory / "seen"
    with refuses("compose.invalid", UnavailableError):
        guest.lifecycle(runner="bash", bash_script=f"touch {seen}\nif\n").start()
    assert not seen.exists()


def test_a_script_that_fails_is_told(guest: Guest) -> None:
    with refuses("compose.start", UnavailableError):
        guest.lifecycle(runner="bash", bash_script="exit 4\n").start()


@pytest.mark.parametrize(("snapshotter", "used"), [(None, "overlayfs"), ("stargz", "stargz")])
def test_nerdctl_starts_in_its_namespace(guest: Guest, snapshotter: str | None, used: str) -> None:
    guest.lifecycle(runner="nerdctl-compose", snapshotter=snapshotter).start()
    start = f"nerdctl --namespace dstack --snapshotter {used} "
    assert guest.verbs == [
        f"{start}compose config --quiet",
        f"{start}compose up --remove-orphans -d",
        f"{start}image prune -af",
    ]


def test_a_program_that_is_not_there_is_told(guest: Guest) -> None:
    guest.environment["PATH"] = "/absent"
    with refuses("compose.program", ConfigError):
        guest.lifecycle().start()
