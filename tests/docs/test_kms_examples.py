"""docs/examples/kms-*: two projects of a key server, that plan, measure and hold their placeholders back."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest

from enclave.devices.host_shared import DEFAULT_DIRECTORY as HOST_SHARED
from enclave.devices.runtime_events import DEFAULT_DIRECTORY as EVENTS
from enclave.devices.tdx import CCEL_PATH, CCEL_VARIABLE
from enclave.devices.tdx_configfs import REPORT_BASE
from enclave.devices.tdx_guest import DEVICE_PATH
from enclave.devices.tpm_device import BOOT_LOG_PATH, DEVICE_PATHS
from enclave.kms.assembly import assemble
from enclave.kms.config import CONFIG_PATH, KmsConfig, parse_config
from enclave.kms.daemon import main
from enclave.platform import Platform
from enclave.serving.http_protocol import Limits
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.compose import GuestCompose, read_compose
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import PROXY_PORT, NitroTee
from enclave.vsock import config as forwarder
from enclave.vsock.transport import UnixStandIn
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError
from tests.docs.references import REPOSITORY
from tests.end_to_end.commands import become, run, shown
from tests.end_to_end.gcp_site import PROJECT, gcp_site, user_environment
from tests.fakes.guests import Roots
from tests.fakes.os_images import write_whole_os_image
from tests.shared.measurement.image_making import Layout, directory, file, layer_tar
from tests.shared.refusal import refuses

EXAMPLES = REPOSITORY / "docs" / "examples"
PROJECTS = ("kms-gcp", "kms-nitro")
MOUNTED = (HOST_SHARED, EVENTS, BOOT_LOG_PATH.parent.parent, CCEL_PATH, REPORT_BASE.parent.parent)
DEVICES = (DEVICE_PATHS[0], DEVICE_PATH)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Copies of the projects, for a user with an OS image and what an enclave boots with."""
    for name in PROJECTS:
        shutil.copytree(EXAMPLES / name, tmp_path / name)
    write_whole_os_image(tmp_path / "images")
    become(monkeypatch, user_environment(tmp_path), tmp_path)
    for name in ("DSTACK_RPC_URL", "DSTACK_KMS_CONTRACT", "DSTACK_CHAIN_ID", "DSTACK_CLOUD_API"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "config.json").write_text(json.dumps({"image_search_paths": [str(tmp_path / "images")]}))
    nitro = tmp_path / "kms-nitro"
    for name in ("bzImage", "init", "nsm.ko"):
        (nitro / name).write_bytes(f"{name} of the test".encode())
    write_layout(nitro)
    return tmp_path


def write_layout(nitro: Path) -> None:
    """Do what the example's Dockerfile does: put its files into an image that runs the KMS."""
    shutil.rmtree(nitro / "layout", ignore_errors=True)
    added = [file(f"etc/kms/{name}", (nitro / name).read_bytes()) for name in ("kms.toml", "rpc-roots.pem")]
    python = file("usr/local/bin/python", b"the base's interpreter", mode=0o755)
    parents = [directory(path) for path in ("etc", "etc/kms", "usr", "usr/local", "usr/local/bin")]
    layer = layer_tar(*parents, *added, python)
    run_as = ["/usr/local/bin/python", "-m", "enclave.kms"]
    Layout(layer, Entrypoint=run_as, Cmd=[]).write(nitro / "layout")


def guest_of(place: Path) -> GuestCompose:
    """Return what the Google Cloud project measures."""
    run("dstack-cloud -C kms-gcp prepare")
    return read_compose((place / "kms-gcp/shared/app-compose.json").read_bytes())


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("name", PROJECTS)
def test_the_linter_finds_no_error_in_either_and_no_warning(name: str) -> None:
    planned = shown(f"dstack-cloud -C {name} plan", 4)
    assert [one for one in planned["findings"] if one["severity"] != "note"] == []


def test_the_guest_has_its_keys_from_its_tpm_and_a_clock_that_counts(place: Path) -> None:
    document = json.loads((EXAMPLES / "kms-gcp/app.json").read_text())
    assert document["secure_time"] is True
    guest = guest_of(place)
    assert (guest.key_provider, guest.no_instance_id) == ("tpm", True)
    assert json.loads((place / "kms-gcp/shared/app-compose.json").read_bytes())["secure_time"] is True


def test_docker_waits_until_what_is_being_answered_is_answered() -> None:
    text = (EXAMPLES / "kms-gcp/docker-compose.yaml").read_text()
    grace = re.search(r"^    stop_grace_period: (\d+)s$", text, re.MULTILINE)
    assert grace
    assert int(grace[1]) > Limits().request_seconds


def configs_of(place: Path) -> dict[str, KmsConfig]:
    """Return both projects' kms.toml, read."""
    measured = guest_of(place).files[CONFIG_PATH]
    baked = (place / "kms-nitro/kms.toml").read_bytes()
    return {"kms-gcp": parse_config(measured), "kms-nitro": parse_config(baked)}


@pytest.mark.parametrize("name", PROJECTS)
def test_its_kms_toml_is_one_that_the_kms_reads(place: Path, name: str) -> None:
    config = configs_of(place)[name]
    proof = config.core.auth_api.proof
    assert proof is not None
    assert config.core.auth_api.type == "proof"
    assert proof.quorum == len(proof.rpc_urls) == 2
    assert config.core.enforce_self_authorization
    assert config.core.attest_rpc_cert
    assert not config.core.attestation.insecure_allow_external_trust_anchors
    assert config.core.aws_nitro_enclave_key_release is (name == "kms-nitro")


def test_the_lines_that_take_keys_over_are_ones_that_the_kms_reads() -> None:
    text = (EXAMPLES / "kms-nitro/kms.toml").read_text()
    lines = "".join(re.findall(r"^#   (.+\n)", text, re.MULTILINE))
    taken_over = parse_config(text.replace('type = "file"\n', lines).encode()).core.custody
    assert taken_over.type == "peer"
    assert taken_over.peer is not None
    assert taken_over.peer.source_urls == ("https://kms.example.com:8000",)


def test_what_the_guest_mounts_holds_all_that_the_kms_reads_and_writes(place: Path) -> None:
    config = configs_of(place)["kms-gcp"]
    proof = config.core.auth_api.proof
    assert proof is not None
    text = (EXAMPLES / "kms-gcp/docker-compose.yaml").read_text()
    assert f"- keys:{config.core.cert_dir}\n" in text
    assert f'ports: ["{config.rpc.port}:{config.rpc.port}"]' in text
    assert config.core.onboard.port == config.rpc.port
    assert set(guest_of(place).files) == {CONFIG_PATH, proof.rpc_roots}
    assert f"      {CCEL_VARIABLE}: /run/ccel\n" in text
    for path in MOUNTED:
        assert re.search(rf"^ +- {path}:", text, re.MULTILINE), path
    for device in DEVICES:
        assert f"- {device}\n" in text


def test_the_guests_project_deploys_and_lets_only_its_network_reach_the_kms(
    place: Path, roots: Roots, monkeypatch: pytest.MonkeyPatch
) -> None:
    with gcp_site(place, roots) as site:
        become(monkeypatch, site.environment, place)
        settings = {"image_search_paths": [str(place / "images")], "gcp": {"project": PROJECT}}
        (place / "config.json").write_text(json.dumps(settings))
        deployed = shown("dstack-cloud -C kms-gcp deploy")
        assert (deployed["status"], deployed["cloud"]) == ("running", "gcp-tdx")
        run("dstack-cloud -C kms-gcp fw allow 8000 --source 192.0.2.0/24")
        assert "tcp 8000   192.0.2.0/24" in run("dstack-cloud -C kms-gcp fw list")


class RealMachine:
    """An enclave whose root passes for AWS's own: the only way to see what a real one refuses."""

    def __init__(self, place: Path, authority: SimulatedAuthority, monkeypatch: pytest.MonkeyPatch) -> None:
        extra = TrustAnchors((), (), ()).with_extra(authority.root_pem).nitro[0]
        genuine = TrustAnchors((msgspec.structs.replace(extra, production=True, name="aws"),), (), ())
        monkeypatch.setattr(TrustAnchors, "production", classmethod(lambda _cls: genuine))
        pcrs = {index: bytes([index + 1]) * 48 for index in range(3)}
        self.image = place / "kms-root"
        tee = NitroTee(SimulatedNsm(pcrs, authority), UnixStandIn(place, cid=16))
        self.platform = Platform(image=self.image, writable=place / "memory", tee=tee)
        self._root = authority.root_pem

    def write(self, config: bytes, roots: bytes | None = None) -> None:
        """Put a kms.toml into the image, with roots of RPC hosts; any certificate is one."""
        etc = self.image / "etc/kms"
        etc.mkdir(parents=True, exist_ok=True)
        (etc / "kms.toml").write_bytes(config)
        (etc / "rpc-roots.pem").write_bytes(roots or self._root)


@pytest.fixture(scope="module")
def authority() -> SimulatedAuthority:
    return SimulatedAuthority.create()


@pytest.fixture(scope="module")
def roots() -> Iterator[Roots]:
    with Roots() as made:
        yield made


@pytest.fixture
def machine(place: Path, authority: SimulatedAuthority, monkeypatch: pytest.MonkeyPatch) -> RealMachine:
    return RealMachine(place, authority, monkeypatch)


@pytest.mark.parametrize("name", PROJECTS)
def test_a_real_kms_refuses_the_roots_that_nobody_filled_in(
    place: Path, machine: RealMachine, name: str
) -> None:
    guest = guest_of(place).files
    nitro = place / "kms-nitro"
    config, roots = {
        "kms-gcp": (guest[CONFIG_PATH], guest["/etc/kms/rpc-roots.pem"]),
        "kms-nitro": ((nitro / "kms.toml").read_bytes(), (nitro / "rpc-roots.pem").read_bytes()),
    }[name]
    machine.write(config, roots)
    with refuses("net.roots.invalid", ConfigError):
        assemble(machine.platform)


@pytest.mark.parametrize("name", PROJECTS)
def test_a_real_kms_refuses_to_make_keys_without_the_token_that_nobody_filled_in(
    place: Path, machine: RealMachine, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    guest = guest_of(place).files
    config = {"kms-gcp": guest[CONFIG_PATH], "kms-nitro": (place / "kms-nitro/kms.toml").read_bytes()}[name]
    # what passes for a real machine here is an enclave, which has no TPM
    machine.write(config.replace(b'type = "tpm"', b'type = "file"'))
    assert main([], machine.platform) == 2
    assert "[config.onboard.token]" in capsys.readouterr().err


def test_the_enclaves_project_measures_the_file_that_it_bakes_in(place: Path) -> None:
    first = shown("dstack-cloud -C kms-nitro plan", 4)["image"]["os_image_hash"]
    built = run(
        "dstack-cloud image build kms-nitro/layout --kernel kms-nitro/bzImage --init kms-nitro/init "
        "--nsm-ko kms-nitro/nsm.ko --output kms.eif"
    )
    assert f"0x{first}" in built
    assert "argv           /usr/local/bin/python -m enclave.kms" in built
    kms = place / "kms-nitro/kms.toml"
    kms.write_text(kms.read_text().replace("https://rpc.example.net", "https://rpc.example.org"))
    write_layout(place / "kms-nitro")
    assert shown("dstack-cloud -C kms-nitro plan", 4)["image"]["os_image_hash"] != first


def test_the_forwarder_lets_the_kms_reach_what_its_file_names_and_nothing_else() -> None:
    rules = forwarder.parse_config((EXAMPLES / "kms-nitro/forwarder.toml").read_text())
    proof = parse_config((EXAMPLES / "kms-nitro/kms.toml").read_bytes()).core.auth_api.proof
    assert proof is not None
    hosts = {urlsplit(url).hostname for url in (proof.url, *proof.rpc_urls)}
    (egress,), (inbound,) = rules.outbound, rules.inbound
    assert {(entry.host, tuple(entry.ports)) for entry in egress.allow} == {(host, (443,)) for host in hosts}
    assert (egress.listen, inbound.target) == (PROXY_PORT, "vsock://16:8000")
    listed = json.loads((EXAMPLES / "kms-nitro/app.json").read_text())["nitro_config"]["egress"]
    assert set(listed) == {f"{host}:443" for host in hosts}
