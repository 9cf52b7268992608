"""get-keys believes one pinned, attested KMS and nobody else (spec kms section 4.7, deploy section 6.2)."""

import json
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from enclave.dstack_util import kms_client
from enclave.dstack_util.get_keys import get_keys
from enclave.dstack_util.main import main
from enclave.kms import limits
from enclave.kms.authorization import Decision
from enclave.kms.callers import CallerVerifier
from enclave.kms.config import Core
from enclave.kms.http import main_app
from enclave.kms.key_store import KeyMaterial
from enclave.kms.rpc_identity import RpcIdentity
from enclave.kms.service import KmsService
from enclave.platform import Platform
from enclave.serving.attested_tls import build_server
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.tee.peers import PeerVerifier
from shared.attestation.report_data import RATLS_CERT, report_data
from shared.errors import DstackError, ExitCode, UnavailableError
from shared.keys.app_keys import RootKeys, derive_app_keys
from shared.keys.k256 import public_key
from shared.ratls.certificates import client_certificate, rpc_certificate, spki_der
from shared.ratls.tls import server_context
from shared.rpc import kms_pb2 as pb

NOW = 1_900_000_000
APP_ID = bytes.fromhex("75537828f2ce51be7289709686a69cbfdbb714f1")
CORE = Core(aws_nitro_enclave_key_release=True)
POLICY = pb.KmsPolicy(auth_mode="proof", clock_source="nsm (simulated)", simulated=True)


class DirectTee(NitroTee):
    """An enclave whose way out leads straight to the KMS under test."""

    def __init__(self, nsm: SimulatedNsm, out: Any) -> None:
        super().__init__(nsm, vsock=None)  # type: ignore[arg-type]
        self._out = out

    def dialer(self) -> Any:
        return self._out


class PartlySilent:
    """A way out on which one host does not answer."""

    def __init__(self, dialer: Any, silent: str) -> None:
        self._dialer = dialer
        self._silent = silent

    def dial(self, host: str, port: int, timeout: float) -> Any:
        if host == self._silent:
            raise UnavailableError("net.unreachable", f"cannot reach {host}")
        return self._dialer.dial(host, port, timeout)


class World:
    """A KMS that tests can bend, and an app image that names it."""

    def __init__(
        self, keys: KeyMaterial, kms_enclave, policy, anchors, authority, directory: Path, serve
    ) -> None:
        self.keys = keys
        self.policy = policy
        self._enclave = kms_enclave
        self._anchors = anchors
        self._authority = authority
        self._directory = directory
        self._serve = serve
        self.config: dict[str, str] = {
            "app_id": f'"0x{APP_ID.hex()}"',
            "kms": '{ url = "https://kms.test:8000", root_ca = "/root-ca.pem" }',
            "trust": '{ nitro_roots = ["/simulated.pem"] }',
        }
        self.root_pem = keys.root_ca_cert.public_bytes(Encoding.PEM)
        self.context_factory: Callable[[], Any] = RpcIdentity(keys, kms_enclave.attestor, lambda: NOW).context
        self.app_clock = NOW
        self.service = KmsService(
            core=CORE,
            keys=keys,
            authorizer=policy,
            own=kms_enclave.evidence(anchors),
            policy=POLICY,
            now=lambda: NOW,
        )

    def platform(self) -> Platform:
        """Start the KMS, write the app's image and return its platform."""
        verifier = PeerVerifier(anchors=self._anchors, now=lambda: NOW)
        callers = CallerVerifier(temp_ca_der=self.keys.temp_ca_der(), verifier=verifier)
        app = main_app(self.service, callers, version="1", metrics=False)
        served = self._serve(build_server(app, context_factory=self.context_factory))
        dialer = PartlySilent(served, "silent.test")
        image = self._directory / "image"
        (image / "etc/dstack").mkdir(parents=True)
        text = "".join(f"{name} = {value}\n" for name, value in self.config.items())
        (image / "etc/dstack/enclave.toml").write_text(text)
        (image / "root-ca.pem").write_bytes(self.root_pem)
        (image / "simulated.pem").write_bytes(self._authority.root_pem)
        registers = {index: bytes([2, index]) * 24 for index in range(3)}
        nsm = SimulatedNsm(registers, self._authority, clock=lambda: self.app_clock)
        return Platform(image=image, writable=image, tee=DirectTee(nsm, dialer))

    def serve_certificate(self, **changes: Any) -> None:
        """Have the KMS present another certificate: `issuer`, `domain`, `attestation`, `client`, `over`."""
        key = ec.generate_private_key(ec.SECP256R1())
        attested = changes.pop("over", key)
        envelope = self._enclave.attestor.attest(report_data(RATLS_CERT, spki_der(attested.public_key())))
        options = {
            "issuer": (self.keys.root_ca_cert, self.keys.root_ca_key),
            "attestation": envelope,
            "now": NOW,
            **changes,
        }
        if options.pop("client", False):
            certificate = client_certificate(key, **options)
        else:
            certificate = rpc_certificate(key, **{"domain": "kms.test", **options})
        context = server_context(key=key, chain=(certificate,), client_ca=self.keys.temp_ca_cert)
        self.context_factory = lambda: context

    def refusal(self) -> DstackError:
        """Return why get-keys refuses."""
        with pytest.raises(DstackError) as refusal:
            get_keys(self.platform())
        return refusal.value


@pytest.fixture
def world(bootstrap, kms_enclave, policy, anchors, authority, tmp_path: Path, serve) -> World:
    return World(bootstrap(), kms_enclave, policy, anchors, authority, tmp_path, serve)


def test_gets_the_keys_that_the_roots_derive(world: World) -> None:
    bundle = get_keys(world.platform())
    assert bundle.keys == derive_app_keys(world.keys.root_keys(), APP_ID)
    assert bundle.k256_root == public_key(world.keys.k256)
    assert bundle.gateway_app_id == "gateway"
    kind, asked = world.policy.asked[-1]
    assert (kind, asked.app_id) == ("app", APP_ID)


@pytest.mark.parametrize("hosts", [("kms.test", "silent.test"), ("silent.test", "kms.test")])
def test_n62_a_kms_that_may_still_come_is_told_from_one_that_refuses(
    world: World, hosts: tuple[str, str]
) -> None:
    """An init that stopped at the first one's refusal would not ask the second one again."""
    world.policy.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    first, second = (f"https://{host}:8000" for host in hosts)
    world.config["kms"] = f'{{ url = "{first}", more_urls = ["{second}"], root_ca = "/root-ca.pem" }}'
    refusal = world.refusal()
    assert isinstance(refusal, UnavailableError)
    assert refusal.code == "net.unreachable"
    assert ("[kms.refused]" in refusal.message) == (hosts[0] == "kms.test")


def test_the_image_chooses_the_epoch_of_its_keys(world: World) -> None:
    world.config = {"key_epoch": "4", **world.config}
    assert get_keys(world.platform()).keys == derive_app_keys(world.keys.root_keys(), APP_ID, epoch=4)


def test_n38_refuses_keys_of_another_epoch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A KMS that knows no epochs ignores the field, and answers with the keys that were to be left behind."""
    answer = world.service.get_app_key

    def upstreams(request: pb.GetAppKeyRequest, caller: object) -> pb.AppKeyResponse:
        request.ClearField("key_epoch")
        return answer(request, caller)

    monkeypatch.setattr(world.service, "get_app_key", upstreams)
    monkeypatch.setattr(world.service, "get_app_key_promptly", upstreams)
    world.config = {"key_epoch": "4", **world.config}
    assert world.refusal().code == "get_keys.epoch"


def test_n62_refuses_keys_for_an_image_that_was_not_named(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the KMS judged is recorded: nothing in its place would look like another guest."""
    answer = world.service.get_app_key

    def nameless(request: pb.GetAppKeyRequest, caller: object) -> pb.AppKeyResponse:
        response = answer(request, caller)
        response.os_image_hash = b""
        return response

    monkeypatch.setattr(world.service, "get_app_key", nameless)
    monkeypatch.setattr(world.service, "get_app_key_promptly", nameless)
    assert world.refusal().code == "get_keys.os_image_hash"


def test_writes_upstreams_file_for_its_owner_alone(world: World, tmp_path: Path) -> None:
    output = tmp_path / "appkeys.json"
    assert main(["get-keys", "-o", str(output)], world.platform()) == ExitCode.OK
    assert stat.S_IMODE(output.stat().st_mode) == 0o600
    document = msgspec.json.decode(output.read_bytes())
    expected = derive_app_keys(world.keys.root_keys(), APP_ID)
    assert document["disk_crypt_key"] == expected.disk_crypt_key.hex()
    assert document["k256_signature"] == expected.k256_signature.hex()
    provider = document["key_provider"]["Kms"]
    assert provider["url"] == "https://kms.test:8000/prpc"
    assert provider["pubkey"] == spki_der(world.keys.root_ca_key.public_key()).hex()
    assert set(document) == {
        "ca_cert",
        "disk_crypt_key",
        "env_crypt_key",
        "k256_key",
        "k256_signature",
        "gateway_app_id",
        "key_provider",
    }


@pytest.mark.parametrize("suffix", ["", "/", "/prpc", "/prpc/"])
def test_names_the_methods_url_once(world: World, suffix: str) -> None:
    world.config["kms"] = f'{{ url = "https://kms.test:8000{suffix}", root_ca = "/root-ca.pem" }}'
    assert get_keys(world.platform()).kms_url == "https://kms.test:8000/prpc"


def test_options_may_repeat_what_the_image_says(world: World, tmp_path: Path) -> None:
    platform = world.platform()
    root = tmp_path / "given.pem"
    root.write_bytes(world.root_pem)
    argv = ["get-keys", "-k", "https://kms.test:8000/", "--app-id", APP_ID.hex(), "--root-ca", str(root)]
    assert main([*argv, "-o", str(tmp_path / "keys")], platform) == ExitCode.OK


@pytest.mark.parametrize("option", ["-k", "--app-id", "--root-ca"])
def test_options_may_say_nothing_else(world: World, tmp_path: Path, capsys, option: str) -> None:
    other = tmp_path / "other.pem"
    other.write_bytes(b"another certificate")
    said = {"-k": "https://elsewhere.test", "--app-id": "00" * 20, "--root-ca": str(other)}[option]
    assert main(["get-keys", option, said], world.platform()) == ExitCode.FAILED
    assert "[get_keys.option]" in capsys.readouterr().err
    assert world.policy.asked == []


def test_an_output_that_cannot_be_written_is_said(world: World, tmp_path: Path, capsys) -> None:
    assert main(["get-keys", "-o", str(tmp_path / "no" / "keys")], world.platform()) == ExitCode.FAILED
    assert "[dstack_util.write]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("app_id", '"0x12"', "image.app_id"),
        ("app_id", '"zz"', "image.app_id"),
        (
            "kms",
            '{ url = "https://kms.test:8000", root_ca = "/root-ca.pem", k256_pubkey = "0x02" }',
            "image.k256_pubkey",
        ),
    ],
)
def test_a_malformed_setting_is_a_configuration_error(world: World, name: str, value: str, code: str) -> None:
    world.config[name] = value
    error = world.refusal()
    assert (error.code, error.exit_code) == (code, ExitCode.USAGE)


def test_a_refusal_is_one_line_and_exit_code_one(world: World, capsys) -> None:
    world.policy.app = Decision(is_allowed=False, reason="Compose hash not allowed", gateway_app_id="")
    assert main(["get-keys"], world.platform()) == ExitCode.FAILED
    captured = capsys.readouterr()
    assert captured.err == (
        "dstack-util: the KMS refused: App not allowed: Boot denied: Compose hash not allowed "
        "(kms.app.denied) [kms.refused]\n"
    )


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"error":"\xff"}', b'{"more":' + b"[" * 100_000])
def test_a_refusal_without_a_text_is_malformed(body: bytes) -> None:
    assert kms_client._refusal(400, body).code == "kms.malformed"


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_kms_without_time_for_us_is_unavailable(status: int) -> None:
    error = kms_client._refusal(status, b'{"error":"busy"}')
    assert (error.code, error.exit_code) == ("kms.unavailable", ExitCode.FAILED)


def test_a_kms_that_limits_calls_is_unavailable_and_has_not_refused() -> None:
    error = kms_client._refusal(400, json.dumps({"error": "wait", "code": limits.CODE}).encode())
    assert (error.code, error.exit_code) == ("kms.unavailable", ExitCode.FAILED)


def test_refuses_to_run_without_a_root_pin(world: World) -> None:
    world.config["kms"] = '{ url = "https://kms.test:8000" }'
    assert world.refusal().code == "get_keys.root_pin"


@pytest.mark.parametrize(
    "url", ["http://kms.test:8000", "kms.test", "https://", "https://kms.test:99999", "https://[kms.test"]
)
def test_refuses_a_kms_url_that_is_not_https(world: World, url: str) -> None:
    world.config["kms"] = f'{{ url = "{url}", root_ca = "/root-ca.pem" }}'
    assert world.refusal().code == "image.kms_url"


def test_refuses_a_zero_app_id(world: World) -> None:
    world.config["app_id"] = f'"0x{"00" * 20}"'
    assert world.refusal().code == "image.app_id"


def test_refuses_an_unknown_key_in_the_image(world: World) -> None:
    world.config["app_idd"] = '""'
    assert world.refusal().code == "image.config"


def test_refuses_a_kms_under_another_root(world: World) -> None:
    world.serve_certificate(issuer=(world.keys.temp_ca_cert, world.keys.temp_ca_key))
    assert world.refusal().code == "ratls.issuer"


def test_n51_refuses_an_app_certificate_posing_as_the_kms(world: World) -> None:
    world.serve_certificate(client=True)
    assert world.refusal().code.startswith("ratls.")


def test_refuses_a_kms_without_evidence(world: World) -> None:
    world.serve_certificate(attestation=None)
    assert world.refusal().code == "ratls.attestation.missing"


def test_refuses_a_kms_whose_evidence_is_for_another_key(world: World) -> None:
    world.serve_certificate(over=ec.generate_private_key(ec.SECP256R1()))
    assert world.refusal().code == "attestation.report_data"


def test_refuses_a_kms_under_another_name(world: World) -> None:
    world.serve_certificate(domain="other.test")
    assert world.refusal().code == "ratls.hostname"


def test_refuses_stale_evidence_by_the_enclaves_own_clock(world: World) -> None:
    world.app_clock = NOW + 3601
    assert world.refusal().code == "nitro.stale"


def test_refuses_an_unknown_attestation_root(world: World) -> None:
    world.config["trust"] = "{ nitro_roots = [] }"
    assert world.refusal().code.startswith("nitro.chain")


def test_n38_refuses_keys_of_another_app(world: World) -> None:
    """A response for app A presented as B's: the k256 signature covers the app id."""
    root = public_key(world.keys.k256)
    world.config["kms"] = (
        f'{{ url = "https://kms.test:8000", root_ca = "/root-ca.pem", k256_pubkey = "0x{root.hex()}" }}'
    )
    world.service.get_app_key = lambda *_: _response(world, bytes([9]) * 20)  # type: ignore[method-assign]
    assert world.refusal().code == "get_keys.signature"


def test_refuses_an_answer_with_another_root_ca(world: World) -> None:
    answer = _response(world, APP_ID)
    answer.ca_cert = world.keys.temp_ca_cert.public_bytes(Encoding.PEM).decode()
    world.service.get_app_key = lambda *_: answer  # type: ignore[method-assign]
    assert world.refusal().code == "get_keys.ca_changed"


@pytest.mark.parametrize("readable", [True, False])
def test_refuses_a_root_ca_that_is_none(world: World, *, readable: bool) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    name, now = x509.Name([]), datetime.now(UTC)
    of_another_kind = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1))
        .sign(key, None)
        .public_bytes(Encoding.PEM)
    )
    answer = _response(world, APP_ID)
    answer.ca_cert = of_another_kind.decode() if readable else "no certificate"
    world.service.get_app_key = lambda *_: answer  # type: ignore[method-assign]  # as above
    assert world.refusal().code == "kms.ca_cert"


def test_the_bundle_hides_its_secrets(world: World) -> None:
    bundle = get_keys(world.platform())
    shown = repr(bundle) + str(bundle)
    assert bundle.keys.k256_key.hex() not in shown
    assert repr(bundle.keys.k256_key) not in shown


def _response(world: World, app_id: bytes) -> pb.AppKeyResponse:
    root: RootKeys = world.keys.root_keys()
    keys = derive_app_keys(root, app_id)
    return pb.AppKeyResponse(
        ca_cert=world.root_pem.decode(),
        disk_crypt_key=keys.disk_crypt_key,
        env_crypt_key=keys.env_crypt_key,
        k256_key=keys.k256_key,
        k256_signature=keys.k256_signature,
    )
