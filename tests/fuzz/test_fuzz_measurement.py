"""Measurement room: vm_config texts, checksum lists, documents, td_hob witnesses and mr_config documents."""

import json

import cbor2
import hypothesis.strategies as st

from shared.measurement.documents import (
    bound_measurement,
    encode_measurement,
    parse_aws_measurement,
    parse_gcp_measurement,
    parse_tdx_measurement,
)
from shared.measurement.images import check_aws_image, check_gcp_image
from shared.measurement.mr_config import encode_mr_config, parse_key_provider, parse_mr_config
from shared.measurement.os_image import parse_sha256sums
from shared.measurement.tdx_registers import (
    LITE_MEMORY,
    LITE_MEMORY_FROM,
    build_td_hob,
    check_lite,
    parse_td_hob,
)
from shared.measurement.vm_config import encode_vm_config, parse_vm_config
from tests.fuzz.budget import fuzz, mutated, outcome
from tests.shared.measurement.made import TD_HOB, acpi_events, config_text, lite_quoted, lite_text, tdx_tree

GCP = {"version": 1, "uki_auth": bytes(32)}
AWS = {"boot_pcr_digest": bytes(32)}
CONFIGS = [
    text.encode()
    for text in (
        lite_text(qemu_version="9.1.0", image="dstack-0.6.0", spec_version=1),
        config_text("gcp", GCP),
        config_text("aws", AWS),
        json.dumps({"kms_urls": [], "vm_config": lite_text()}),
        '{"os_image_hash":"","pic":true,"mr_config":"{}"}',
    )
]
MEASUREMENTS = [cbor2.dumps(tree) for tree in (tdx_tree(), GCP, AWS)]
MR_CONFIGS = [
    json.dumps(
        {
            "app_id": "11" * 20,
            "compose_hash": "22" * 32,
            "gpu_policy_hash": "55" * 32,
            "init_script_hashes": ["66" * 32],
            "instance_id": "44" * 20,
            "key_provider": "kms",
            "key_provider_id": "33",
            "version": 3,
        }
    ).encode()
]
# any json whose keys are often ours, with lone surrogates in its texts
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["os_image_hash", "cpu_count", "qemu_version", "gcp_measurement", "vm_config"])
            | st.text(st.characters(), max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@fuzz(
    mutated(CONFIGS).map(lambda raw: raw.decode(errors="surrogateescape"))
    | JSON.map(json.dumps)
    | st.text(st.characters(), max_size=200)
)
def test_vm_config(text: str) -> None:
    config = outcome(parse_vm_config, text)
    if config is None:
        return
    assert parse_vm_config(encode_vm_config(config)) == config
    outcome(check_lite, config, acpi_events(), lite_quoted())
    outcome(check_gcp_image, config, [bytes(32)])
    outcome(check_aws_image, config, {4: bytes(48), 7: bytes(48), 12: bytes(48)})
    for document in (config.tdx_measurement, config.gcp_measurement, config.aws_measurement):
        outcome(bound_measurement, document, "gcp", config.os_image_hash)


@fuzz(st.binary(max_size=200) | mutated([b"aa" * 32 + b"  measurement.tdx.cbor\n"]))
def test_sha256sums(raw: bytes) -> None:
    listed = outcome(parse_sha256sums, raw)
    if listed is not None:
        written = "".join(f"{digest.hex()}  {name}\n" for name, digest in listed.items())
        assert parse_sha256sums(written.encode()) == listed


@fuzz(st.binary(max_size=200) | mutated(MEASUREMENTS))
def test_measurements(raw: bytes) -> None:
    for measurement in (
        outcome(parse_tdx_measurement, raw),
        outcome(parse_gcp_measurement, raw),
        outcome(parse_aws_measurement, raw),
    ):
        if measurement is not None:
            again = encode_measurement(measurement)
            assert len(again) == len(raw)  # keys may come in another order
            assert cbor2.loads(again) == cbor2.loads(raw)


@fuzz(st.binary(max_size=40) | mutated([TD_HOB, bytes.fromhex("80100904000609020b021010")]))
def test_td_hob(witness: bytes) -> None:
    ranges = outcome(parse_td_hob, witness)
    if ranges is None:
        return
    for memory_size in (LITE_MEMORY, LITE_MEMORY_FROM):
        hob = build_td_hob(ranges, memory_size)
        lengths = [int.from_bytes(hob[at + 40 : at + 48], "little") for at in range(56, len(hob), 48)]
        assert sum(lengths) == memory_size
        assert 0 not in lengths


@fuzz(st.binary(max_size=200) | mutated(MR_CONFIGS) | JSON.map(lambda value: json.dumps(value).encode()))
def test_mr_config(raw: bytes) -> None:
    document = outcome(parse_mr_config, raw)
    if document is not None:
        assert parse_mr_config(encode_mr_config(document)) == document
    outcome(parse_key_provider, raw)
