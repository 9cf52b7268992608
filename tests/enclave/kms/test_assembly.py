"""What weakens a check works only in a simulated enclave (N-59 and the trust rule)."""

from pathlib import Path
from queue import SimpleQueue

import pytest

from enclave.kms.assembly import Parts, assemble
from enclave.platform import Platform
from enclave.simulator.authority import SimulatedAuthority
from enclave.simulator.nsm import SimulatedNsm
from enclave.tee.nitro import NitroTee
from enclave.vsock.transport import UnixStandIn
from shared.attestation.trust import TrustAnchors
from shared.errors import ConfigError, DstackError, InvalidEvidence
from shared.net.json_rpc import Endpoint
from tests.enclave.kms.test_authorization import BOOT_INFO
from tests.shared.net.hanging import PATIENCE, Asking, Hanging
from tests.shared.net.rpc_stand_ins import StandIn

ANCHOR = """
[core.attestation]
insecure_allow_external_trust_anchors = true
[core.attestation.root_ca]
aws_nitro_enclave = "/root.pem"
"""
DEV = '[core.auth_api]\ntype = "dev"\n'


ROOTS = 'rpc_roots = "/root.pem"\n'


def _proof(*urls: str, quorum: int) -> str:
    return f"""
[core.auth_api.proof]
url = "http://127.0.0.1:1"
chain_id = 1
kms_contract = "0x{"11" * 20}"
rpc_urls = {list(urls)}
quorum = {quorum}
"""


class Machine:
    """Writes an image and assembles a KMS from it."""

    def __init__(self, directory: Path, authority: SimulatedAuthority) -> None:
        self._directory = directory
        self._authority = authority
        self.pcrs = {index: bytes([index + 1]) * 48 for index in range(3)}

    def assemble(self, config: str) -> Parts:
        (self._directory / "etc/kms").mkdir(parents=True, exist_ok=True)
        (self._directory / "etc/kms/kms.toml").write_text(config)
        (self._directory / "root.pem").write_bytes(self._authority.root_pem)
        return assemble(
            Platform(
                image=self._directory,
                writable=self._directory,
                tee=NitroTee(SimulatedNsm(self.pcrs, self._authority), UnixStandIn(self._directory, 16)),
            )
        )

    def refusal(self, config: str, kind: type[DstackError] = ConfigError) -> str:
        with pytest.raises(kind) as refusal:
            self.assemble(config)
        return refusal.value.code


@pytest.fixture
def simulated(tmp_path: Path, authority: SimulatedAuthority) -> Machine:
    return Machine(tmp_path, authority)


@pytest.fixture
def real(simulated: Machine, authority: SimulatedAuthority, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return a machine whose root passes for AWS's own: the only way to test a real enclave's refusals."""
    extra = TrustAnchors((), (), ()).with_extra(authority.root_pem).nitro[0]
    genuine = TrustAnchors((type(extra)(**{**_fields(extra), "production": True, "name": "aws"}),), (), ())
    monkeypatch.setattr(TrustAnchors, "production", classmethod(lambda _cls: genuine))
    return simulated


def _fields(anchor: object) -> dict[str, object]:
    return {name: getattr(anchor, name) for name in anchor.__struct_fields__}  # type: ignore[attr-defined]


def test_a_simulated_kms_reports_itself(simulated: Machine) -> None:
    parts = simulated.assemble(ANCHOR + _proof("http://127.0.0.1:2", quorum=1))
    told = parts.policy
    assert (told.simulated, told.clock_source, told.auth_mode) == (True, "nsm (simulated)", "proof")
    assert (told.quorum, told.quorum_plain_http, told.max_head_age) == (1, True, 120)
    assert told.evidence_anchor.startswith("external")
    assert (told.self_authorization, told.attested_certificate) == (True, True)


def test_a_lax_kms_reports_what_is_lax(simulated: Machine) -> None:
    lax = "[core]\nenforce_self_authorization = false\nattest_rpc_cert = false\n"
    proof = _proof("HTTP://127.0.0.1:2", quorum=1) + "allow_cache = 7\nblock_cache = 3\nmax_head_age = 300\n"
    told = simulated.assemble(lax + ANCHOR + proof).policy
    assert (told.self_authorization, told.attested_certificate) == (False, False)
    assert (told.allow_cache, told.block_cache, told.max_head_age) == (7, 3, 300)
    assert told.quorum_plain_http


def test_images_are_verified_and_told_to_be_whatever_the_file_says(simulated: Machine) -> None:
    assert simulated.assemble("[core.image]\nverify = false\n" + ANCHOR + DEV).policy.image_verification


def test_the_verdict_shows_that_nitro_was_treated_as_up_to_date(simulated: Machine) -> None:
    plain = simulated.assemble(ANCHOR + DEV).own.verdict
    treated = simulated.assemble("[core]\ntreat_nitro_as_up_to_date = true\n" + ANCHOR + DEV).own.verdict
    assert plain.disabled_checks == ()
    assert treated.disabled_checks == ("tcb_status of this KMS: core.treat_nitro_as_up_to_date",)


def test_a_real_kms_reports_itself(real: Machine) -> None:
    told = real.assemble(_proof("https://a.example", "https://b.example", quorum=2) + ROOTS).policy
    assert (told.simulated, told.clock_source, told.quorum_plain_http) == (False, "nsm", False)


def test_https_endpoints_need_measured_roots(real: Machine) -> None:
    assert (
        real.refusal(_proof("https://a.example", "https://b.example", quorum=2)) == "config.proof.rpc_roots"
    )


def test_a_malformed_own_app_id_is_a_configuration_error(simulated: Machine, tmp_path: Path) -> None:
    (tmp_path / "etc/dstack").mkdir(parents=True)
    (tmp_path / "etc/dstack/app-id").write_bytes(b"\xff")
    assert simulated.refusal(ANCHOR + DEV) == "image.app_id"


def test_refuses_to_start_under_an_unknown_root(simulated: Machine) -> None:
    assert simulated.refusal(_proof("https://a", "https://b", quorum=2), InvalidEvidence).startswith("nitro.")


def test_refuses_to_start_as_a_debug_enclave(simulated: Machine) -> None:
    simulated.pcrs = {index: bytes(48) for index in range(3)}
    assert simulated.refusal(ANCHOR + DEV, InvalidEvidence) == "nitro.debug"


def test_n59_a_real_kms_refuses_dev_mode(real: Machine) -> None:
    assert real.refusal(DEV) == "config.dev.real"


def test_n59_a_real_kms_refuses_the_gateway_wildcard(real: Machine) -> None:
    assert real.refusal(DEV + '[core.auth_api.dev]\ngateway_app_id = "any"\n') == "config.dev.real"


def test_a_simulated_kms_may_run_dev_mode(simulated: Machine) -> None:
    assert simulated.assemble(ANCHOR + DEV).authorizer.mode == "dev"


def test_a_real_kms_refuses_a_quorum_of_one(real: Machine) -> None:
    assert real.refusal(_proof("https://a.example", quorum=1) + ROOTS) == "quorum.config.size"


def test_a_real_kms_refuses_plain_http_endpoints(real: Machine) -> None:
    code = real.refusal(_proof("http://a.example", "https://b.example", quorum=2) + ROOTS)
    assert code == "quorum.config.plain_http"


def test_a_real_kms_refuses_two_endpoints_of_one_host(real: Machine) -> None:
    code = real.refusal(_proof("https://a.example/1", "https://a.example/2", quorum=2) + ROOTS)
    assert code == "quorum.config.hosts"


def test_a_real_kms_refuses_extra_trust_anchors(
    real: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the extra root must be another one: the same would be one anchor
    other = SimulatedAuthority.create().root_pem
    write = Path.write_bytes
    monkeypatch.setattr(
        Path, "write_bytes", lambda path, data: write(path, other if path.name == "root.pem" else data)
    )
    del tmp_path
    assert real.refusal(ANCHOR + _proof("https://a", "https://b", quorum=2)) == "config.anchors.mixed"


def test_refuses_an_image_without_a_configuration(tmp_path: Path, authority: SimulatedAuthority) -> None:
    platform = Platform(
        image=tmp_path,
        writable=tmp_path,
        tee=NitroTee(SimulatedNsm({}, authority), UnixStandIn(tmp_path, 16)),
    )
    with pytest.raises(ConfigError) as refusal:
        assemble(platform)
    assert refusal.value.code == "image.missing"


def test_n57_an_endpoint_that_hangs_holds_up_one_request(
    simulated: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: SimpleQueue[str] = SimpleQueue()
    hanging = Hanging(StandIn("c", chain_id=1), happened)
    endpoints: dict[str, Endpoint] = {
        "a": StandIn("a", chain_id=1),
        "b": StandIn("b", chain_id=1),
        "c": hanging,
    }
    monkeypatch.setattr("enclave.kms.assembly.JsonRpc", lambda url, _http: endpoints[url.rpartition("/")[2]])
    proof = _proof("http://a", "http://b", "http://c", quorum=2)
    authorizer = simulated.assemble(ANCHOR + proof).authorizer

    def ask() -> Asking:
        return Asking(lambda: authorizer.authorize("app", BOOT_INFO), happened)

    ask()
    assert happened.get(timeout=PATIENCE) == "hangs"
    hanging.time_out()
    assert happened.get(timeout=PATIENCE) == "done"
    asking = ask()
    assert happened.get(timeout=PATIENCE) == "done"
    # the blocks were named: it is the function that is not there
    assert isinstance(asking.result, DstackError)
    assert asking.result.code == "vsock.connect.refused"
