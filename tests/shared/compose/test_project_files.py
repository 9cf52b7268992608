"""The small files of a project: .env, .instance_info, .sys-config.json, state.json."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.compose.env_file import MAX_FILE_BYTES, MAX_VALUE_BYTES, lint_env_file, parse_env_file
from shared.compose.project import Services
from shared.compose.shared_files import (
    InstanceInfo,
    encode_instance_info,
    encode_sys_config,
    encode_vm_config,
    parse_instance_info,
)
from shared.compose.state import Deployed, State, read_state, write_state
from shared.errors import ConfigError, InvalidEvidence, ProtocolError
from shared.measurement.documents import (
    MeasurementDocument,
    aws_measurement_document,
    gcp_measurement_document,
)
from shared.measurement.vm_config import parse_vm_config
from tests.shared.refusal import refuses

# ---- .env ----


def test_reads_upstreams_grammar() -> None:
    env = parse_env_file(b'\n# comment\n  A = x=y \r\nexport\nB=\nQ="q"\nA=last\n_1=\'s\n')
    assert env.values == {"A": "last", "B": "", "Q": '"q"', "_1": "'s"}
    assert env.names == ("A", "B", "Q", "_1")


def test_n74_values_stay_out_of_repr_and_messages() -> None:
    assert repr(parse_env_file(b"A=hunter2")) == "EnvFile(A)"
    with refuses("env.encoding", ConfigError) as caught:
        parse_env_file(b"A=hunter2\xff")
    assert "hunter2" not in f"{caught.value}{caught.value.__cause__}"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"\xff", "env.encoding"),
        (b"A=x\x00y", "env.encoding"),
        (b"export A=x", "env.name"),
        (b"=x", "env.name"),
        (b"A-B=x", "env.name"),
        (b"A" * 256 + b"=x", "env.name"),
        ("É=x".encode(), "env.name"),
        (b"\xef\xbb\xbfA=x", "env.name"),
        (b"A=" + b"x" * (MAX_VALUE_BYTES + 1), "env.size"),
        (b"\n".join(b"A%d=" % n + b"x" * MAX_VALUE_BYTES for n in range(9)), "env.size"),
        (b"#" * (MAX_FILE_BYTES + 1), "env.size"),
        (b"\n".join(b"A%d=x" % n for n in range(1025)), "env.count"),
    ],
)
def test_n71_refuses_what_the_guest_would(raw: bytes, code: str) -> None:
    with refuses(code, ConfigError):
        parse_env_file(raw)


def test_warns_of_quotes_that_are_kept() -> None:
    env = parse_env_file(b'A="x"\nB=\'y\'\nC="z\nD="\nE=plain')
    assert [(one.code, one.where) for one in lint_env_file(env)] == [
        ("lint.env.quotes", "A"),
        ("lint.env.quotes", "B"),
    ]


@given(st.binary(max_size=60))
def test_any_bytes_give_variables_or_an_error_of_ours(raw: bytes) -> None:
    try:
        parse_env_file(raw)
    except ConfigError as error:
        assert error.code.startswith("env.")  # noqa: PT017 - either outcome is fine


# ---- .instance_info ----


def test_instance_info_makes_a_round_trip() -> None:
    for info in (InstanceInfo(b"\x33" * 20, b"\x22" * 20), InstanceInfo(b"", b"")):
        assert parse_instance_info(encode_instance_info(info)) == info
    assert parse_instance_info(b"{}") == InstanceInfo(b"", b"")


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"[]", "instance_info.type"),
        (b"{", "instance_info.syntax"),
        (b'{"app_id":1}', "instance_info.field"),
        (b'{"app_id":"ab"}', "instance_info.field"),
        (b'{"instance_id_seed":"zz"}', "instance_info.field"),
        (b" " * 20_000, "instance_info.size"),
    ],
)
def test_refuses_a_broken_instance_info(raw: bytes, code: str) -> None:
    with refuses(code, ProtocolError):
        parse_instance_info(raw)


# ---- .sys-config.json ----


@pytest.mark.parametrize(
    ("kind", "make"), [("gcp", gcp_measurement_document), ("aws", aws_measurement_document)]
)
def test_a_vm_config_is_what_verifiers_read(
    kind: Any, make: Callable[[bytes], tuple[bytes, bytes, bytes]]
) -> None:
    sums, measurement, digest = make(b"\x5a" * 32)
    text = encode_vm_config(kind, MeasurementDocument(sums, measurement))
    assert text.startswith('{"spec_version": 2, "os_image_hash": "')
    read = parse_vm_config(text)
    assert read.os_image_hash == digest
    assert getattr(read, f"{kind}_measurement").measurement == measurement


def test_a_measurement_that_its_list_does_not_name_is_refused() -> None:
    sums, measurement, _ = gcp_measurement_document(b"\x5a" * 32)
    with refuses("measurement.checksum", InvalidEvidence):
        encode_vm_config("gcp", MeasurementDocument(sums, measurement[:-1] + b"x"))
    with refuses("measurement.entry", InvalidEvidence):
        encode_vm_config("aws", MeasurementDocument(sums, measurement))


def test_the_vm_config_is_a_text_in_the_sys_config() -> None:
    services = Services(kms_urls=("https://kms",), gateway_urls=(), pccs_url="https://pccs")
    document = json.loads(encode_sys_config(services, "{}"))
    assert document == {
        "kms_urls": ["https://kms"],
        "gateway_urls": [],
        "pccs_url": "https://pccs",
        "vm_config": "{}",
    }
    gpu = msgspec.structs.replace(services, nvidia_attestation_proxy_url="https://gpu")
    assert json.loads(encode_sys_config(gpu, "{}"))["nvidia_attestation_proxy_url"] == "https://gpu"


# ---- state.json ----


def test_state_makes_a_round_trip_with_unknown_keys() -> None:
    raw = b'{"platform":"gcp","status":"RUNNING","ami_id":null,"future":{"a":1}}'
    state = read_state(raw)
    assert (state.platform, state.is_live, state.extra) == ("gcp", True, {"future": {"a": 1}})
    assert json.loads(write_state(state)) == {"platform": "gcp", "status": "RUNNING", "future": {"a": 1}}
    assert read_state(write_state(state)) == state


def test_unknown_keys_of_what_was_deployed_survive() -> None:
    state = read_state(b'{"deployed":{"plan_id":"a","extra":1,"future":2}}')
    assert state.deployed is not None
    assert (state.deployed.plan_id, state.deployed.extra) == ("a", {"extra": 1, "future": 2})
    written = json.loads(write_state(state))["deployed"]
    assert (written["plan_id"], written["extra"], written["future"]) == ("a", 1, 2)


def test_state_holds_what_was_deployed() -> None:
    state = State(status="REMOVED", deployed=Deployed(compose_hash="ab"))
    assert not state.is_live
    assert read_state(write_state(state)) == state


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"[]", "project.state.type"),
        (b"{", "project.state.syntax"),
        (b'{"status":1}', "project.state.field"),
        (b'{"deployed":[]}', "project.state.field"),
    ],
)
def test_refuses_a_broken_state(raw: bytes, code: str) -> None:
    with refuses(code, ConfigError):
        read_state(raw)
