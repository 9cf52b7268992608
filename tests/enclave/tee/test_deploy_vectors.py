"""The deployment values of `../shared/data/deploy` that a guest, a plan and a verifier have in common."""

import json
from pathlib import Path
from typing import Any

import pytest

from enclave.tee.boot_events import make_instance_id
from shared.compose.model import DEFAULT_GPU_POLICY_HASH
from shared.measurement.eif_registers import image_hash
from shared.measurement.mr_config import (
    KeyProvider,
    KeyProviderKind,
    mr_config_id_v1,
    mr_config_id_v2,
    mr_config_id_v3,
)

VECTORS: dict[str, Any] = json.loads(
    (Path(__file__).parents[2] / "data" / "deploy" / "vectors.json").read_text()
)


@pytest.mark.parametrize(("binding", "expected"), [("", "no_binding"), ("binding", "with_binding")])
def test_makes_the_instance_ids_of_the_vectors(binding: str, expected: str) -> None:
    vector = VECTORS["instance_id"]
    seed, app_id, bound = (
        bytes.fromhex(vector[name] if name else "") for name in ("seed", "app_id", binding)
    )
    assert make_instance_id(seed, app_id, bound).hex() == vector[expected]


def test_makes_the_config_ids_of_the_vectors() -> None:
    vector = VECTORS["mr_config_id"]
    inputs = vector["inputs"]
    compose_hash, app_id, key_id = (
        bytes.fromhex(inputs[name]) for name in ("compose_hash", "app_id", "key_provider_id")
    )
    provider = KeyProvider(KeyProviderKind(inputs["key_provider"]), key_id)
    assert mr_config_id_v1(compose_hash).hex() == vector["v1"]
    assert mr_config_id_v2(compose_hash, app_id, provider).hex() == vector["v2"]
    assert mr_config_id_v3(vector["v3_document"].encode()).hex() == vector["v3"]


def test_the_gpu_policy_of_nobody_has_the_hash_of_the_vectors() -> None:
    assert DEFAULT_GPU_POLICY_HASH.hex() == VECTORS["gpu_policy_default_hash"]


@pytest.mark.parametrize("name", ["nitro_attestation.bin", "synthetic"])
def test_makes_the_image_hashes_of_the_vectors(name: str) -> None:
    vector = VECTORS["nitro_os_image_hash"][name]
    registers = (bytes.fromhex(vector[f"pcr{number}"]) for number in range(3))
    assert image_hash(*registers).hex() == vector["os_image_hash"]
