"""docs/verification.md: its commands are run, and give what it shows; its tables and files are the code's."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from cli.devchain.launcher import Chain
from cli.kms_audit import LANES
from cli.verify_hints import hint_for
from enclave.simulator.evidence import sample_guest
from functions.verify.settings import VerifierSettings, parse_settings
from shared.attestation.endorsements import Endorsements
from shared.attestation.image import check_image
from shared.attestation.policy import DEFAULT_POLICY, Firmware, Policy, parse_policy
from shared.attestation.trust import TrustAnchors
from shared.attestation.verdict import Lanes, Status, Verdict
from shared.attestation.verify import verify_attestation
from tests.cli.kms_site import kms_site
from tests.docs.console_page import Session, wrong
from tests.docs.references import REPOSITORY, is_error_code
from tests.shared.attestation.forgery import NOW, REPORT_DATA
from tests.shared.attestation.guest_forgery import MR_CONFIG_V1, TABLE_EVENT, GcpGuest, TdxGuest, TpmGuest
from tests.shared.measurement.made import fold, h48

PAGE = (REPOSITORY / "docs" / "verification.md").read_text()
BEFORE, _, _REST = PAGE.partition("\n## A key server\n")
KEY_SERVER, _, AFTER = _REST.partition("\n## ")
# the section on key servers needs a running one, and has a session of its own
BLOCKS = re.findall(r"^```console\n(.*?)^```", f"{BEFORE}\n## {AFTER}", re.MULTILINE | re.DOTALL)
TOOLS = ("bash", "curl", "openssl", "xxd", "sha256sum")
PORT = "8080"
GAP = "…"
# What differs from run to run: times, keys, and what is made of keys.
VARIABLE = (
    (re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"), "TIME"),
    (re.compile(r"\b\d+ s before"), "AGE"),
    (re.compile(r"\bi-[0-9a-f]{17}(-enc[0-9a-f]{16})?\b"), "MODULE"),
    (re.compile(r"\b[0-9a-f]{16,}\b"), "HEX"),
    (re.compile(r"\b1[0-9]{9}\b"), "UNIX"),
)


@dataclass
class Command:
    """One command of the page, and the lines that it shows of the output."""

    text: str
    shown: list[str] = field(default_factory=list)


def commands() -> list[Command]:
    found: list[Command] = []
    for block in BLOCKS:
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:]))
            elif line.startswith("> ") or line == ">":
                found[-1].text += "\n" + line[2:]
            else:
                found[-1].shown.append(line)
    return found


def normal(line: str) -> str:
    for pattern, name in VARIABLE:
        line = pattern.sub(name, line)
    return line.rstrip()


def script(wanted: Sequence[Command], port: int) -> str:
    """One shell session: each command behind a line that tells its number."""
    lines = ["set -u", "trap 'kill $(jobs -p) 2>/dev/null' EXIT"]
    for number, command in enumerate(wanted):
        text = command.text.replace(PORT, str(port))
        lines.append(f"echo; echo '@@{number}'")
        if text.endswith(" &"):
            lines.append(f"{text[:-2]} > server.log 2>&1 &")
            probe = f"curl -sf -o /dev/null http://127.0.0.1:{port}/health"
            lines.append(f"for _ in $(seq 300); do {probe} && break; sleep 0.1; done")
        else:
            lines.append(text)
    return "\n".join(lines)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def outputs(wanted: Sequence[Command], directory: Path) -> list[list[str]]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("DSTACK_")}
    done = subprocess.run(
        ["bash"],
        input=script(wanted, free_port()),
        cwd=directory,
        env={**variables, "PATH": path, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )
    parts = re.split(r"\n@@\d+\n", "\n" + done.stdout)
    return [part.rstrip("\n").splitlines() for part in parts[1:]]


def test_the_commands_give_what_the_page_shows(tmp_path: Path) -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the page's commands need {', '.join(missing)}")
    wanted = commands()
    assert len(wanted) >= 30
    for command, lines in zip(wanted, outputs(wanted, tmp_path), strict=True):
        at = 0
        actual = [normal(line) for line in lines]
        gap = False
        for shown in command.shown:
            if shown == GAP:
                gap = True
                continue
            expected = normal(shown)
            if gap:
                assert expected in actual[at:], (command.text, shown, lines)
                at = actual.index(expected, at)
                gap = False
            assert at < len(actual), (command.text, shown, lines)
            assert actual[at] == expected, (command.text, lines)
            at += 1
        assert gap or at == len(actual), (command.text, "shows too little", lines[at:])


def test_most_commands_show_an_outcome() -> None:
    shown = [line for command in commands() for line in command.shown]
    assert sum(line.startswith("VERIFIED") for line in shown) >= 7
    assert sum(line.startswith("REFUSED") for line in shown) >= 3


def test_the_commands_about_a_key_server_give_what_the_page_shows(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with kms_site(chain, "nitro", 2) as site:
        shutil.copy(site.trust[1], tmp_path / "root.pem")
        words = {
            "localhost:8000": site.url.removeprefix("https://"),
            "0x9fe46736679d2d9a65f0992f2272de9f3c7fa6e0": site.governance.kms.address.lower(),
            "http://127.0.0.1:8545": chain.url,
        }
        done = Session(tmp_path, words).take(KEY_SERVER)
    assert len(done) == 4
    assert wrong(done) == []


def test_the_lanes_of_a_key_server_are_those_that_are_judged() -> None:
    rows = re.findall(r"^\| (`.+?`) \| ", KEY_SERVER, re.MULTILINE)
    assert tuple(name for row in rows for name in re.findall(r"`(\w+)`", row)) == LANES


# --- tables ---


def verdicts(image: Path) -> list[Verdict]:
    """What a good guest of each platform shows, in the order of the table's columns."""
    enclave, tdx, gcp, tpm = sample_guest("nitro", image, now=NOW), TdxGuest(), GcpGuest(), TpmGuest()
    nitro = verify_attestation(
        enclave.attest(REPORT_DATA),
        now=NOW,
        anchors=TrustAnchors.production().with_extra(enclave.root_pem),
        endorsements=enclave.endorsements,
        report_data=REPORT_DATA,
    )
    lists = Endorsements(crls=tpm.authority.crls(NOW - 60))
    log = [
        msgspec.structs.replace(TABLE_EVENT, imr=0, digest=h48("firmware")),
        TABLE_EVENT,
        msgspec.structs.replace(TABLE_EVENT, imr=2, digest=h48("command line")),
    ]
    first, second, third = (fold(event.digest) for event in log)
    evidence = (
        nitro,
        tpm.verify(report_data=REPORT_DATA, endorsements=lists),
        tdx.verify(tdx.attestation(mr_config_id=MR_CONFIG_V1), report_data=REPORT_DATA),
        gcp.verify(gcp.attestation(log=log, rtmrs=(first, second, third)), report_data=REPORT_DATA),
    )
    return [check_image(one).verdict for one in evidence]


def test_the_table_of_lanes_is_the_verdicts(tmp_path: Path) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
    table = {name: cells.split(" | ") for name, cells in rows if name in Lanes.__struct_fields__}
    assert tuple(table) == Lanes.__struct_fields__
    shown = verdicts(tmp_path)
    for name, cells in table.items():
        statuses = [getattr(verdict.lanes, name).status.value for verdict in shown]
        assert cells == statuses, name


def test_every_status_is_explained() -> None:
    for status in Status:
        assert f"| `{status.value}` |" in PAGE


def test_every_code_of_the_table_can_be_raised_and_has_a_hint() -> None:
    section = PAGE.partition("## What refusals mean")[2].partition("\n## ")[0]
    codes = [
        code
        for row in re.findall(r"^\| (`.+?`) \|", section, re.MULTILINE)
        for code in re.findall(r"`([a-z0-9_.]+)`", row)
    ]
    assert len(codes) >= 15
    composed = {"measurement.rtmr0", "measurement.rtmr1", "tdx.collateral.age"}
    for code in codes:
        assert code in composed or is_error_code(code), code
        assert hint_for(code, 1)


# --- files ---


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def test_the_policy_file_has_every_key_and_is_the_default() -> None:
    (text,) = (block for block in blocks("toml") if "[nitro]" in block)
    assert parse_policy(text.encode()) == DEFAULT_POLICY
    for struct in (*(type(getattr(DEFAULT_POLICY, name)) for name in Policy.__struct_fields__), Firmware):
        for key in struct.__struct_fields__:
            assert re.search(rf"^(\[\[gcp\.)?{key}\b", text, re.MULTILINE), key


def test_the_settings_have_every_key_and_are_the_defaults() -> None:
    (text,) = (block for block in blocks("toml") if "[attestation.root_ca]" in block)
    assert parse_settings(text.encode(), {}) == VerifierSettings()
    defaults = VerifierSettings()
    attestation = defaults.attestation
    for struct in (defaults, attestation, attestation.urls, attestation.root_ca):
        for key in struct.__struct_fields__:
            assert re.search(rf"^(\[attestation\.|\[)?{key}\b", text, re.MULTILINE), key
