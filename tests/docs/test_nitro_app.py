"""docs/nitro-app.md and its example: every setting and code is there, and the project plans."""

import json
import re
import shutil
import tomllib
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest

from enclave.dstack_util.enclave_config import EnclaveConfig
from enclave.init.environment import READ_SECONDS
from enclave.init.kernel import MOUNTS
from enclave.init.progress import MAX_FAILURES, SEND_SECONDS, Event
from enclave.init.secret_files import DIRECTORY
from enclave.init.settings import Boot
from enclave.vsock.config import parse_config
from functions.builder.blobs import BootBlob, BootBlobs
from functions.builder.cache import BuildCache
from functions.builder.nitro_image import DEFAULT_CMDLINES, build_nitro_image
from functions.builder.sources import OciLayoutSource
from shared.attestation.app_id_register import app_id_message
from tests.docs.references import REPOSITORY, is_error_code
from tests.end_to_end.commands import become, shown
from tests.end_to_end.gcp_site import user_environment
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar

PAGE = (REPOSITORY / "docs" / "nitro-app.md").read_text()
EXAMPLE = REPOSITORY / "docs" / "examples" / "nitro-app"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and not line.startswith("|---")
]
ENTRY = ["/usr/local/bin/python", "-m", "enclave.init"]


def _config() -> EnclaveConfig:
    return msgspec.convert(tomllib.loads((EXAMPLE / "enclave.toml").read_text()), EnclaveConfig)


def test_has_every_setting_of_init_with_its_default() -> None:
    rows = {key: row[1] for row in ROWS for key in re.findall(r"`([a-z_]+)`", row[0])}
    assert not set(Boot.__struct_fields__) - rows.keys()
    boot = Boot()
    for name in ("env_port", "proxy_port", "key_attempts"):
        assert rows[name] == str(getattr(boot, name))


def test_every_code_can_be_raised() -> None:
    codes = {code for row in ROWS for code in re.findall(r"`([a-z_]+(?:\.[a-z0-9_]+)+)`", row[-1])}
    assert len(codes) >= 15
    assert not {code for code in codes if not is_error_code(code)}


def test_tells_what_the_code_does() -> None:
    assert app_id_message(b"").decode() in PAGE
    assert f"`{DIRECTORY}/`" in PAGE
    assert all(f"`{mount.target}`" in PAGE for mount in MOUNTS)
    assert (READ_SECONDS, SEND_SECONDS, MAX_FAILURES) == (30.0, 3.0, 2)


def test_shows_an_event_as_it_is_sent() -> None:
    example = re.search(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    assert example
    event = msgspec.json.decode(example[1], type=Event)
    assert json.loads(example[1]) == msgspec.to_builtins(event)


def test_the_examples_files_agree_with_each_other() -> None:
    config = _config()
    config.boot.check()
    assert config.app_id_bytes().hex() == json.loads((EXAMPLE / "app.json").read_text())["app_id"]
    forwarder = parse_config((EXAMPLE / "forwarder.toml").read_text())
    inbound = {rule.name: rule.target_address.port for rule in forwarder.inbound}
    assert inbound == {"hello": config.boot.ports[0].listen, "evidence": config.evidence.port}
    (offer,) = forwarder.offer
    assert offer.listen == config.boot.env_port
    (endpoint,) = config.kms.endpoints()
    assert forwarder.outbound[0].allows(endpoint.host, endpoint.port)
    dockerfile = (EXAMPLE / "Dockerfile").read_text()
    assert f"ENTRYPOINT {json.dumps(ENTRY)}" in dockerfile
    assert config.kms.root_ca == "/etc/dstack/kms-root-ca.pem"


def _write_layout(place: Path) -> bytes:
    """Do what the example's Dockerfile does, on a base that is one file."""
    added = [
        file("etc/dstack/enclave.toml", (place / "enclave.toml").read_bytes()),
        file("etc/dstack/kms-root-ca.pem", (place / "kms-root-ca.pem").read_bytes()),
        file("etc/passwd", b"nobody:x:65534:65534::/nonexistent:/usr/sbin/nologin\n"),
        file("app/hello.py", (place / "hello.py").read_bytes()),
        file("usr/local/bin/python", b"the base's interpreter", mode=0o755),
    ]
    parents = [directory(path) for path in ("app", "etc", "etc/dstack", "usr", "usr/local", "usr/local/bin")]
    layout = Layout(layer_tar(*parents, *added), Entrypoint=ENTRY, Cmd=[])
    layout.write(place / "layout")
    return bytes.fromhex(layout.root.removeprefix("sha256:"))


def test_the_example_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "nitro-app"
    shutil.copytree(EXAMPLE, place)
    _write_layout(place)
    for name in ("bzImage", "init", "nsm.ko"):
        (place / name).write_bytes(f"{name} of the test".encode())
    become(monkeypatch, user_environment(tmp_path), tmp_path)
    for name in ("DSTACK_RPC_URL", "DSTACK_KMS_CONTRACT", "DSTACK_CHAIN_ID", "DSTACK_CLOUD_API"):
        monkeypatch.delenv(name, raising=False)
    planned = shown("dstack-cloud -C nitro-app plan", 4)
    assert [one for one in planned["findings"] if one["severity"] != "note"] == []


def test_the_examples_enclave_begins_with_init(tmp_path: Path) -> None:
    place = tmp_path / "nitro-app"
    shutil.copytree(EXAMPLE, place)
    digest = _write_layout(place)
    blob = BootBlob(b"boot", sha256(b"boot").digest())
    built = build_nitro_image(
        OciLayoutSource(place / "layout", digest),
        BootBlobs(blob, blob, blob, DEFAULT_CMDLINES["x86_64"]),
        cache=BuildCache(tmp_path / "cache"),
        output=tmp_path / "app.eif",
        name="hello",
    )
    assert built.built.argv == tuple(ENTRY)
