"""What the guest reads in an app-compose.json, and refuses."""

import contextlib
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.compose.model import (
    DEFAULT_GPU_POLICY_HASH,
    AppCompose,
    model_of,
    read_app_compose,
    refuse_unknown,
)
from shared.errors import ProtocolError
from tests.shared.refusal import refuses

DATA = Path(__file__).parents[2] / "data" / "deploy"
VECTORS = json.loads((DATA / "vectors.json").read_text())
BASE = {"manifest_version": 2, "name": "demo", "runner": "docker-compose"}
V3 = BASE | {"manifest_version": "3"}


def model(**fields: Any) -> AppCompose:
    return model_of(BASE | fields)


def test_reads_what_the_command_line_writes() -> None:
    compose = read_app_compose((DATA / "app-compose.cli.json").read_bytes())
    assert (compose.name, compose.runner, compose.key_provider) == ("demo", "docker-compose", "kms")
    assert compose.uses_gateway
    assert not compose.secure_time
    assert compose.unknown == ()


def test_has_the_guests_defaults() -> None:
    compose = model()
    assert (compose.secure_time, compose.public_tcbinfo, compose.public_logs) == (True, True, False)
    assert compose.effective_key_provider == "none"
    assert compose.gpu_policy_hash == DEFAULT_GPU_POLICY_HASH
    assert not compose.uses_gateway


@pytest.mark.parametrize(("version", "number"), [(1, 1), (2, 2), ("1", 1), ("2", 2), ("3", 3)])
def test_takes_each_form_of_the_manifest_version(version: object, number: int) -> None:
    assert model(manifest_version=version).manifest == number


@pytest.mark.parametrize(
    "version", [3, 0, "03", "0", "", "+3", "4", 2.5, 2.0, True, None, "\uff13", [2], "9" * 5000]
)
def test_refuses_other_forms_of_the_manifest_version(version: object) -> None:
    with refuses("compose.manifest_version", ProtocolError):
        model(manifest_version=version)


def test_a_version_is_needed() -> None:
    with refuses("compose.manifest_version", ProtocolError):
        model_of({"name": "demo", "runner": "bash"})


@pytest.mark.parametrize(
    "fields",
    [
        {"runner": "podman"},
        {"name": 1},
        {"public_logs": "yes"},
        {"key_provider": "kMs"},
        {"event_log_version": 3},
        {"allowed_envs": None},
        {"port_policy": {"ports": [{"port": 65536}]}},
        {"snapshotter": "btrfs"},
    ],
)
def test_refuses_a_field_of_another_type(fields: dict[str, Any]) -> None:
    with refuses("compose.field", ProtocolError):
        model(**fields)


@pytest.mark.parametrize("missing", ["name", "runner"])
def test_needs_name_and_runner(missing: str) -> None:
    with refuses("compose.field", ProtocolError):
        model_of({key: value for key, value in BASE.items() if key != missing})


def test_takes_nulls_where_the_guest_has_an_option() -> None:
    compose = model(docker_compose_file=None, init_script=None, key_provider=None, requirements=None)
    assert compose.scripts == ()
    assert compose.requirements is None


@pytest.mark.parametrize(
    ("fields", "provider"),
    [
        ({"kms_enabled": True}, "kms"),
        ({"kms_enabled": True, "local_key_provider_enabled": True}, "kms"),
        ({"local_key_provider_enabled": True}, "local"),
        ({"kms_enabled": True, "key_provider": "tpm"}, "tpm"),
    ],
)
def test_derives_the_key_provider_of_older_documents(fields: dict[str, Any], provider: str) -> None:
    assert model(**fields).effective_key_provider == provider


@pytest.mark.parametrize(
    "fields", [{"tproxy_enabled": True}, {"features": ["tproxy-net"]}, {"gateway_enabled": True}]
)
def test_any_of_three_turns_the_gateway_on(fields: dict[str, Any]) -> None:
    assert model(**fields).uses_gateway


def test_a_key_provider_id_pins_a_provider_that_has_one() -> None:
    assert model(key_provider="kms", key_provider_id="00ff").key_provider_id == "00ff"
    for provider in ("tpm", "none"):
        with refuses("compose.key_provider_id", ProtocolError):
            model(key_provider=provider, key_provider_id="00ff")
    with refuses("compose.key_provider_id", ProtocolError):
        model(key_provider="kms", key_provider_id="0xff")


def test_storage_is_named_in_any_case() -> None:
    assert model(storage_fs="ZFS").storage_fs == "ZFS"
    with refuses("compose.storage_fs", ProtocolError):
        model(storage_fs="btrfs")


# ---- env_signer ----

# Every encoding of edwards25519's points of small order, those that are not reduced included.
Y8 = int.from_bytes(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"), "little"
)
P = 2**255 - 19
SMALL_ORDER = sorted(
    (height + sign * 2**255).to_bytes(32, "little").hex()
    for height in (0, 1, P - 1, P, P + 1, Y8, P - Y8)
    for sign in (0, 1)
)


def test_reads_an_env_signer() -> None:
    compose = model(env_signer="d7" * 32, env_min_version=3)
    assert (compose.env_signer, compose.env_min_version, compose.unknown) == ("d7" * 32, 3, ())
    assert (model().env_signer, model().env_min_version) == (None, 0)


@pytest.mark.parametrize(
    "signer", ["", "d7" * 31, "0x" + "d7" * 32, "zz" * 32, "d7" * 32 + "\n", *SMALL_ORDER]
)
def test_n59_refuses_an_env_signer_that_is_no_key_or_binds_nobody(signer: str) -> None:
    with refuses("compose.env_signer", ProtocolError):
        model(env_signer=signer)


@pytest.mark.parametrize("y", [Y8, P - Y8])
def test_the_points_of_order_eight_are_where_the_curve_has_them(y: int) -> None:
    """Doubling one gives a point of order four, whose y is 0: that is where x*x == y*y (RFC 8032 5.1)."""
    d = -121665 * pow(121666, -1, P)
    square = (y * y - 1) * pow(d * y * y + 1, -1, P) % P  # x * x, by the curve's equation
    assert pow(square, (P - 1) // 2, P) == 1
    assert (y * y + square) % P == 0  # the numerator of the doubled point's y


def test_reads_a_key_epoch() -> None:
    assert (model(key_epoch=3).key_epoch, model().key_epoch, model(key_epoch=3).unknown) == (3, 0, ())


@pytest.mark.parametrize("epoch", [-1, 1 << 32, "1", None, True])
def test_refuses_a_key_epoch_of_another_kind(epoch: Any) -> None:
    with refuses("compose.field", ProtocolError):
        model(key_epoch=epoch)


@pytest.mark.parametrize("version", [-1, 2**53, "3", 1.5, None, True])
def test_refuses_an_env_min_version_of_another_kind(version: Any) -> None:
    with refuses("compose.field", ProtocolError):
        model(env_min_version=version)


# ---- scripts ----


def test_hashes_each_init_script() -> None:
    compose = model_of(V3 | {"init_script": ["a", "é"]})
    assert compose.init_script_hashes == (sha256(b"a").digest(), sha256("é".encode()).digest())
    assert model(init_script="a").scripts == ("a",)


@pytest.mark.parametrize(("base", "count"), [(BASE, 2), (V3, 6)])
def test_refuses_more_init_scripts_than_the_guest_runs(base: dict[str, Any], count: int) -> None:
    assert model_of(base | {"init_script": ["x"] * (count - 1)}).scripts
    with refuses("compose.init_script", ProtocolError):
        model_of(base | {"init_script": ["x"] * count})


def test_refuses_a_lone_surrogate() -> None:
    with refuses("compose.text", ProtocolError):
        read_app_compose(json.dumps(BASE | {"init_script": "\ud800"}).encode())


# ---- requirements ----


def test_reads_requirements() -> None:
    policy = {"rego": "x", "attest_gpu": False}
    required = {
        "os_version": ">=0.6.0, <1",
        "platforms": [],
        "gpu_policy": policy,
        "launch_token_hash": "ab" * 32,
    }
    compose = model_of(V3 | {"requirements": required})
    assert compose.requirements is not None
    assert compose.requirements.platforms == ()
    assert compose.requirements.gpu_policy is not None
    assert not compose.requirements.gpu_policy.attest_gpu
    assert compose.gpu_policy_hash == sha256(b'{"attest_gpu":false,"rego":"x"}').digest()


def test_the_default_gpu_policy_hash_is_upstreams() -> None:
    assert DEFAULT_GPU_POLICY_HASH.hex() == VECTORS["gpu_policy_default_hash"]
    assert model_of(V3 | {"requirements": {}}).gpu_policy_hash == DEFAULT_GPU_POLICY_HASH


@pytest.mark.parametrize(
    "required",
    [
        {"os_version": "newest"},
        {"os_version": ">=0.6.0 <1"},
        {"os_version": ""},
        {"os_version": "1," * 200},
        {"launch_token_hash": "ab"},
        {"launch_token_hash": "0x" + "ab" * 31},
        {"new": 1},
        {"gpu_policy": {"new": 1}},
        {"gpu_policy": {"attest_gpu": None}},
        {"platforms": "dstack-tdx"},
        [],
    ],
)
def test_refuses_requirements_that_the_guest_refuses(required: object) -> None:
    with refuses("compose.requirements", ProtocolError):
        model_of(V3 | {"requirements": required})


@pytest.mark.parametrize(
    "text", ["*", "1", "^1.2", "~1.2.3", "=1.2.*", ">=0.6.0-rc.1", "<2, >1.0", "1.2.3+build"]
)
def test_takes_each_form_of_a_version_requirement(text: str) -> None:
    assert model_of(V3 | {"requirements": {"os_version": text}}).requirements is not None


def test_requirements_need_manifest_version_3_even_when_empty() -> None:
    with refuses("compose.requirements", ProtocolError):
        model(requirements={})


# ---- volumes ----


def test_verity_volumes_have_a_root_and_a_target_of_their_own() -> None:
    volume = {"source": "s", "verity_root": "ab" * 32, "target": "/data"}
    assert model(verity_volumes=[volume]).verity_volumes[0].target == "/data"
    for broken in ([volume, volume], [volume | {"target": "data"}], [volume | {"verity_root": "ab"}]):
        with refuses("compose.verity_volume", ProtocolError):
            model(verity_volumes=broken)


# ---- unknown fields ----


def test_n05_a_verifier_refuses_an_unknown_field() -> None:
    compose = model(run_me="curl evil | sh", port_policy={"ports": [], "new": 1}, docker_config={"salt": ""})
    assert compose.unknown == ("docker_config.salt", "port_policy.new", "run_me")
    with refuses("compose.unknown", ProtocolError):
        refuse_unknown(compose)
    refuse_unknown(model())


@pytest.mark.parametrize("name", ["unknown", "gpu_policy_hash"])
def test_n05_names_of_ours_are_unknown_to_guests(name: str) -> None:
    assert model(**{name: ["x"]}).unknown == (name,)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from([*AppCompose.__struct_fields__, "other"])


@given(st.dictionaries(FIELDS, JSON, max_size=6))
def test_any_document_gives_a_model_or_an_error_of_ours(document: dict[str, Any]) -> None:
    with contextlib.suppress(ProtocolError):
        assert 1 <= model_of(V3 | document).manifest <= 3
