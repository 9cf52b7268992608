import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import pytest

from shared.measurement import documents
from shared.measurement.documents import (
    MAX_MEASUREMENT_BYTES,
    AwsMeasurement,
    GcpMeasurement,
    MeasurementDocument,
    TdxMeasurement,
    bound_measurement,
    document_from_base64,
    document_to_base64,
    encode_measurement,
    parse_aws_measurement,
    parse_gcp_measurement,
    parse_tdx_measurement,
)
from tests.shared.measurement.made import TD_HOB, document, h48, tdx_tree
from tests.shared.refusal import refuses

UKI = bytes(range(32))
TDX = TdxMeasurement(
    cmdline_sha384=h48("cmdline"),
    kernel_authenticode=h48("kernel"),
    initrd_sha384=h48("initrd"),
    mrtd_single_pass=h48("single"),
    mrtd_two_pass=h48("two"),
    td_hob=TD_HOB,
)


def gcp_document(**changes: Any) -> MeasurementDocument:
    built = documents.gcp_measurement_document(UKI)
    return MeasurementDocument(**{"checksum_file": built[0], "measurement": built[1], **changes})


def test_reads_a_tdx_measurement_of_an_independent_encoder() -> None:
    assert parse_tdx_measurement(cbor2.dumps(tdx_tree())) == TDX


def test_writes_each_measurement_as_an_independent_encoder_does() -> None:
    assert encode_measurement(TDX) == cbor2.dumps(tdx_tree())
    assert encode_measurement(GcpMeasurement(UKI)) == cbor2.dumps({"version": 1, "uki_auth": UKI})
    assert encode_measurement(AwsMeasurement(UKI)) == cbor2.dumps({"boot_pcr_digest": UKI})


@pytest.mark.parametrize("length", [0, 23, 24, 255, 256, 300])
def test_writes_byte_strings_of_any_length_as_an_independent_encoder_does(length: int) -> None:
    tree = tdx_tree()
    tree["tdvf"]["td_hob"] = bytes(length)
    encoded = cbor2.dumps(tree)
    assert encode_measurement(parse_tdx_measurement(encoded)) == encoded


def test_reproduces_the_specs_vectors(shared_data: Callable[[str], Path]) -> None:
    vectors = {v["name"]: v for v in json.loads(shared_data("measurement/vectors.json").read_text())}
    gcp, aws = vectors["measurement.gcp.cbor"], vectors["measurement.aws.cbor"]
    uki = bytes.fromhex(gcp["input"]["uki_auth"])
    assert encode_measurement(GcpMeasurement(uki)).hex() == gcp["output"]
    assert parse_gcp_measurement(bytes.fromhex(gcp["output"])).uki_auth == uki
    digest = hashlib.sha256(b"".join(map(bytes.fromhex, aws["input"].values()))).digest()
    assert encode_measurement(AwsMeasurement(digest)).hex() == aws["output"]


def test_reproduces_the_fixtures_document(shared_data: Callable[[str], Path]) -> None:
    text = json.loads(shared_data("measurement/tdx-lite-getquote.json").read_text())["vm_config"]
    fixture = json.loads(text)
    carried = document_from_base64(**fixture["tdx_measurement"])
    raw = bound_measurement(carried, "tdx", bytes.fromhex(fixture["os_image_hash"]))
    built = documents.tdx_measurement_document(parse_tdx_measurement(raw))
    assert built == (carried.checksum_file, raw, carried.os_image_hash)


def test_binds_a_measurement_among_other_files() -> None:
    measurement = encode_measurement(AwsMeasurement(UKI))
    carried, image = document("aws", measurement, extra=b"aa" * 32 + b"  bzImage\n")
    bound = bound_measurement(document_from_base64(**carried), "aws", image)
    assert parse_aws_measurement(bound) == AwsMeasurement(UKI)


def test_built_documents_are_bound_to_the_image_they_return() -> None:
    for kind, built in (
        ("tdx", documents.tdx_measurement_document(TDX)),
        ("gcp", documents.gcp_measurement_document(UKI)),
        ("aws", documents.aws_measurement_document(UKI)),
    ):
        made = MeasurementDocument(*built[:2])
        assert bound_measurement(made, kind, built[2]) == built[1]  # type: ignore[arg-type]


def test_base64_survives_the_round_trip() -> None:
    assert document_from_base64(**document_to_base64(gcp_document())) == gcp_document()


def test_refuses_a_missing_document() -> None:
    with refuses("measurement.missing"):
        bound_measurement(None, "gcp", bytes(32))


def test_refuses_an_oversize_measurement_before_hashing_it() -> None:
    with refuses("measurement.size"):
        bound_measurement(gcp_document(measurement=bytes(MAX_MEASUREMENT_BYTES + 1)), "gcp", bytes(32))


@pytest.mark.parametrize("image", [b"", bytes(32)])
def test_n54_refuses_another_images_checksum_list(image: bytes) -> None:
    with refuses("measurement.os_image_hash"):
        bound_measurement(gcp_document(), "gcp", image)


def test_n54_refuses_a_measurement_that_the_list_does_not_name() -> None:
    made = gcp_document()
    with refuses("measurement.entry"):
        bound_measurement(made, "aws", made.os_image_hash)


def test_n54_refuses_other_bytes_than_the_list_names() -> None:
    made = gcp_document(measurement=encode_measurement(GcpMeasurement(bytes(32))))
    with refuses("measurement.checksum"):
        bound_measurement(made, "gcp", made.os_image_hash)


def test_refuses_a_list_with_two_lines_for_the_measurement() -> None:
    made = gcp_document(checksum_file=gcp_document().checksum_file * 2)
    with refuses("os_image.sums.duplicate"):
        bound_measurement(made, "gcp", made.os_image_hash)


@pytest.mark.parametrize("text", ["AA", "AA=", "AB==", "A A=", "AA==\n", "-_==", "ä", "AAAA=", "=AAA"])
def test_refuses_all_but_canonical_base64(text: str) -> None:
    with refuses("measurement.base64"):
        document_from_base64(text, "")


def _with(*path: str, value: Any) -> bytes:
    tree = tdx_tree()
    inner = tree
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return cbor2.dumps(tree)


def _without(*path: str) -> bytes:
    tree = tdx_tree()
    inner = tree
    for name in path[:-1]:
        inner = inner[name]
    del inner[path[-1]]
    return cbor2.dumps(tree)


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (cbor2.dumps([]), "measurement.format"),
        (_with("extra", value=1), "measurement.format"),
        (_with("image", "extra", value=1), "measurement.format"),
        (_with("image", value=[]), "measurement.format"),
        (_with("tdvf", "mrtd", value={}), "measurement.format"),
        (_without("tdvf"), "measurement.format"),
        (_without("image", "cmdline_sha384"), "measurement.format"),
        (_with("image", "cmdline_sha384", value="00" * 48), "measurement.format"),
        (_with("tdvf", "td_hob", value="00"), "measurement.format"),
        (_with("version", value=2), "measurement.version"),
        (_with("version", value="3"), "measurement.version"),
        (_with("tdvf", "ovmf", value="post202505"), "measurement.ovmf"),
        (_with("tdvf", "ovmf", value=7), "measurement.ovmf"),
        (_with("tdvf", "mrtd", "two_pass", value=bytes(32)), "measurement.length"),
        (_with("image", "initrd_sha384", value=bytes(49)), "measurement.length"),
        (cbor2.dumps(tdx_tree()) + b"\0", "cbor.trailing"),
    ],
)
def test_refuses_a_tdx_measurement_of_another_shape(raw: bytes, code: str) -> None:
    with refuses(code):
        parse_tdx_measurement(raw)


@pytest.mark.parametrize(
    ("tree", "code"),
    [
        ({"version": True, "uki_auth": UKI}, "measurement.version"),
        ({"version": 2, "uki_auth": UKI}, "measurement.version"),
        ({"uki_auth": UKI}, "measurement.format"),
        ({"version": 1, "uki_auth": UKI[1:]}, "measurement.length"),
        ({"version": 1, "uki_auth": UKI.hex()}, "measurement.format"),
    ],
)
def test_refuses_a_gcp_measurement_of_another_shape(tree: Any, code: str) -> None:
    with refuses(code):
        parse_gcp_measurement(cbor2.dumps(tree))


@pytest.mark.parametrize(
    ("tree", "code"),
    [
        ({"version": 1, "boot_pcr_digest": UKI}, "measurement.format"),
        ({"boot_pcr_digest": bytes(48)}, "measurement.length"),
    ],
)
def test_refuses_an_aws_measurement_of_another_shape(tree: Any, code: str) -> None:
    with refuses(code):
        parse_aws_measurement(cbor2.dumps(tree))
