"""An enclave's deployment over boto3, with scripts that truly run on a parent made of files."""

import json
from ipaddress import ip_network
from pathlib import Path

import msgspec
import pytest

from enclave.vsock.config import parse_config
from functions.aws_api import AwsClient
from functions.clouds import nitro_parent
from functions.clouds.aws_nitro import GRACE_SECONDS, AwsNitroCloud
from functions.clouds.ec2_group import delete_group, ensure_group, find_groups, group_name, group_rules
from functions.clouds.ec2_instances import (
    delete_volumes,
    find_instances,
    tag_filters,
    terminate_instance,
)
from functions.clouds.nitro_bring_up import AGENT_SECONDS, ENCLAVE_SECONDS
from functions.clouds.nitro_commands import LOG_PAGE, enclave_failure
from functions.clouds.nitro_launch import SHOW_SECONDS, UPLOAD_SECONDS
from functions.clouds.nitro_site import recorded_instance
from functions.deploy.cloud import DeniedError, FirewallRule, Machine, TransientCloudError, Wait
from functions.deploy.machine_claims import check_machine
from functions.deploy.record import Files, Lease, Resource, Step
from functions.deploy.work import LeasedWork
from shared.compose.findings import Severity
from shared.errors import CloudError, ConfigError, DstackError, StorageError
from tests.fakes.aws import REGION
from tests.fakes.nitro_aws import NitroAws, user_data
from tests.fakes.nitro_parent import Ran
from tests.functions.clouds.nitro_world import NAME, World, bundle, world
from tests.shared.refusal import refuses


def test_an_app_is_launched_stopped_started_and_removed(nitro: World) -> None:
    nitro.fake.measured.clear()  # so that the image is truly measured, once
    nitro.fake.pending = nitro.fake.offline = nitro.fake.slow = 1
    machine = nitro.launch()
    check_machine(nitro.work().plan, machine)
    assert machine.status == "RUNNING"
    assert machine.evidence_url == f"http://{machine.external_ip}:8090/evidence"
    assert set(nitro.states().values()) == {"present"}
    (enclave,) = nitro.parent.enclaves()
    assert (enclave["EnclaveCID"], enclave["EnclaveName"], enclave["Flags"]) == (16, "app", "NONE")
    parent = nitro.parent

    stopped = nitro.until_done(nitro.cloud.stop)
    assert stopped.status == "STOPPED"
    assert parent.enclaves() == []
    assert nitro.states()["enclave"] == "gone"

    again = nitro.until_done(nitro.cloud.start)
    check_machine(nitro.work().plan, again)
    assert nitro.parent is parent
    assert len(nitro.fake.orders) == 1

    assert nitro.until_done(nitro.cloud.remove) is None
    assert nitro.left() == {}
    assert set(nitro.states().values()) == {"gone"}


def test_the_order_is_for_an_enclaves_parent_alone(quick_nitro: World) -> None:
    quick_nitro.launch()
    order = quick_nitro.order()
    assert order["EnclaveOptions.Enabled"] == "true"
    assert order["MetadataOptions.HttpTokens"] == "required"
    assert order["MetadataOptions.HttpPutResponseHopLimit"] == "1"
    assert order["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    assert order["IamInstanceProfile.Name"] == "dstack-parent"
    assert "KeyName" not in order  # nobody logs in
    assert 0 < len(order["ClientToken"]) <= 64
    tags = {
        order[f"TagSpecification.1.Tag.{n}.Key"]: order[f"TagSpecification.1.Tag.{n}.Value"]
        for n in range(1, 5)
    }
    assert tags == {
        "Name": NAME,
        "dstack-managed-by": "dstack-cloud",
        "dstack-deployment": quick_nitro.uid,
        "dstack-plan": ("c1" * 32)[:32],
    }


def test_the_parent_has_what_the_plan_says(nitro: World) -> None:
    nitro.launch()
    parent = nitro.parent
    allocator = parent.file("/etc/nitro_enclaves/allocator.yaml").read_text()
    assert allocator == "---\nmemory_mib: 512\ncpu_count: 2\n"
    config = parse_config(parent.file("/etc/dstack/forwarder.toml").read_text())
    assert {(rule.listen, rule.target) for rule in config.inbound} == {
        ("0.0.0.0:8090", "vsock://16:8080"),
        ("0.0.0.0:8443", "vsock://16:443"),
    }
    assert parent.file("/opt/dstack/forwarder/__main__.py").exists()
    assert parent.file("/var/lib/dstack/bringup.done").exists()
    enabled = json.loads((parent.state / "enabled.json").read_text())
    assert enabled == [
        "nitro-enclaves-allocator.service",
        nitro_parent.FORWARDER_UNIT,
        nitro_parent.ENCLAVE_UNIT,
    ]
    # and the script may run again, from its beginning, under an enclave that runs
    before = parent.enclaves()
    parent.file("/var/lib/dstack/bringup.done").unlink()
    assert parent.run(user_data(nitro.order())).exit_code == 0
    assert parent.enclaves() == before


CIPHERTEXT = bytes(range(200))


def _with_env(nitro: World, content: bytes = CIPHERTEXT) -> str:
    digest = nitro.blobs.put(content)
    nitro.change(files=Files(project={}, encrypted_env=digest))
    return digest


def test_the_parent_offers_the_apps_ciphertext_and_nothing_of_it_is_left(nitro: World) -> None:
    _with_env(nitro)
    nitro.launch()
    offers = parse_config(nitro.parent.file("/etc/dstack/forwarder.toml").read_text()).offer
    (env,) = (one for one in offers if one.name == "env")
    assert (env.listen, env.peers) == (9100, (16,))
    assert Path(env.file).read_bytes() == CIPHERTEXT
    assert nitro.states()["env"] == "present"
    assert nitro.until_done(nitro.cloud.remove) is None
    assert nitro.left() == {}


def test_an_app_without_variables_is_offered_none(nitro: World) -> None:
    nitro.launch()
    assert not nitro.parent.file("/var/lib/dstack/encrypted-env").exists()
    assert "env" not in nitro.states()


def test_another_environment_of_the_same_plan_is_another_launch(quick_nitro: World) -> None:
    _with_env(quick_nitro)
    quick_nitro.launch()
    first = quick_nitro.parent.instance_id
    _with_env(quick_nitro, CIPHERTEXT[::-1])
    quick_nitro.launch()
    assert quick_nitro.parent.instance_id != first
    assert quick_nitro.order()["ClientToken"] != quick_nitro.fake.orders[0]["ClientToken"]


def test_n71_a_ciphertext_that_was_changed_in_the_bucket_reaches_no_enclave(nitro: World) -> None:
    digest = _with_env(nitro)
    _one_step(nitro)
    key = f"eif/{nitro.uid}/env-{digest}"
    assert nitro.s3.get_object(Bucket=nitro.bucket, Key=key)["Body"].read() == CIPHERTEXT
    nitro.s3.put_object(Bucket=nitro.bucket, Key=key, Body=CIPHERTEXT[::-1])
    with refuses("nitro.parent.env", DeniedError):
        nitro.launch()
    assert nitro.parent.enclaves() == []


def test_the_parent_offers_where_progress_is_told_and_lets_it_through(nitro: World) -> None:
    nitro.change(progress_token="word")
    work = LeasedWork(
        nitro.store,
        nitro.blobs,
        nitro.store.get(NAME),
        lambda: nitro.now,
        listens_at="https://api.example.com",
    )
    nitro.cloud.launch(work)
    nitro.launch()
    config = parse_config(nitro.parent.file("/etc/dstack/forwarder.toml").read_text())
    (offer,) = (one for one in config.offer if one.name == "progress")
    url = "https://api.example.com/v1/deployments/web/progress/word"
    assert (offer.listen, Path(offer.file).read_text()) == (9101, f"{url}\n")
    assert config.outbound[0].allows("api.example.com", 443)


def test_a_redeploy_makes_another_instance_and_keeps_the_group(quick_nitro: World) -> None:
    quick_nitro.launch()
    first, group = quick_nitro.parent, quick_nitro.left()["group"]
    rule = FirewallRule(action="allow", protocol="udp", port=9000, sources=("203.0.113.0/24",))
    quick_nitro.cloud.set_firewall(quick_nitro.work(), rule)
    quick_nitro.replan("d2" * 32, b"another", ports=("9443:443",))
    assert quick_nitro.until_done(quick_nitro.cloud.retire) is None
    assert set(quick_nitro.left()) == {"group"}
    machine = quick_nitro.launch()
    check_machine(quick_nitro.work().plan, machine)
    assert quick_nitro.parent is not first
    assert quick_nitro.left()["group"] == group
    ports = {(one.protocol, one.port) for one in quick_nitro.cloud.firewall(quick_nitro.work())}
    assert ports == {("tcp", 8090), ("tcp", 9443), ("udp", 9000)}


def test_an_instance_of_another_plan_is_ended_before_a_launch(quick_nitro: World) -> None:
    quick_nitro.launch()
    first = quick_nitro.parent.instance_id
    quick_nitro.replan("d2" * 32)
    quick_nitro.launch()
    assert quick_nitro.parent.instance_id != first
    assert len(quick_nitro.left()["instance"]) == 1


# ---- what a cloud may say that is not so (N-80) ----


@pytest.mark.parametrize(
    ("lies", "code"),
    [
        ({"enclave": "false"}, "deploy.machine.confidential"),
        ({"instance_type": "m5.xlarge"}, "deploy.machine.confidential"),
    ],
)
def test_n80_an_instance_that_is_not_what_was_ordered_is_refused(
    quick_nitro: World, lies: dict[str, str], code: str
) -> None:
    quick_nitro.fake.lies.update(lies)
    machine = quick_nitro.launch()
    with refuses(code, DstackError):
        check_machine(quick_nitro.work().plan, machine)


@pytest.mark.parametrize(
    "lie",
    [
        {"Flags": "DEBUG_MODE"},
        {"Measurements": {"PCR0": "00" * 48, "PCR1": "00" * 48, "PCR2": "00" * 48}},
        {"Measurements": {}},
    ],
    ids=["debug", "other-pcrs", "no-pcrs"],
)
def test_n80_an_enclave_that_is_not_the_planned_one_is_refused(
    quick_nitro: World, lie: dict[str, object]
) -> None:
    quick_nitro.launch()
    quick_nitro.parent.lie(**lie)
    for machine in (quick_nitro.cloud.describe(quick_nitro.work()), quick_nitro.launch()):
        assert machine.confidential != "NITRO_ENCLAVE"
        assert machine.traits["debug"] is ("Flags" in lie)
        with refuses("deploy.machine.confidential", DstackError):
            check_machine(quick_nitro.work().plan, machine)


def test_an_enclave_that_ended_is_said_to_be_down(quick_nitro: World) -> None:
    quick_nitro.launch()
    quick_nitro.parent.end_enclaves()
    machine = quick_nitro.cloud.describe(quick_nitro.work())
    assert (machine.status, machine.confidential) == ("ENCLAVE_DOWN", "")


# ---- what goes wrong on the instance ----


def test_nitro_clis_failure_ends_the_launch_with_what_to_change(nitro: World) -> None:
    code = 27
    _one_step(nitro)
    nitro.parent.fail("run-enclave", code)
    with refuses(f"nitro.enclave.e{code}", DeniedError) as caught:
        nitro.launch()
    assert isinstance(caught.value, DeniedError)
    assert "nitro_config.memory_mib" in caught.value.hint
    assert f"E{code}" in caught.value.message


def test_an_enclave_that_came_up_at_the_second_attempt_is_up(nitro: World) -> None:
    _one_step(nitro)
    nitro.parent.fail("run-enclave", 39)
    with refuses("nitro.enclave.e39", TransientCloudError):
        nitro.launch()
    nitro.parent.fail("run-enclave", 0)
    assert nitro.parent.run(f"systemctl start {nitro_parent.ENCLAVE_UNIT}").exit_code == 0
    assert nitro.parent.file("/var/lib/dstack/bringup.failed").exists()
    check_machine(nitro.work().plan, nitro.launch())


def test_an_image_that_is_not_the_planned_one_any_more_is_not_run(nitro: World) -> None:
    nitro.launch()
    parent = nitro.parent
    stop, start = (f"systemctl {verb} {nitro_parent.ENCLAVE_UNIT}" for verb in ("stop", "start"))
    assert parent.run(stop).exit_code == 0
    parent.know({digest: pcrs | {"PCR2": "ff" * 48} for digest, pcrs in nitro.fake.measured.items()})
    assert parent.run(start).exit_code != 0
    assert parent.file("/var/lib/dstack/enclave.exit").read_text() == f"{nitro_parent.EXIT_OTHER_PCRS}\n"
    parent.file("/var/lib/dstack/app.eif").write_bytes(b"another image")
    assert parent.run(start).exit_code != 0
    assert parent.file("/var/lib/dstack/enclave.exit").read_text() == f"{nitro_parent.EXIT_OTHER_BYTES}\n"
    assert parent.enclaves() == []
    with refuses("nitro.enclave.image", CloudError) as caught:
        nitro.launch()
    assert "other bytes than were planned" in caught.value.message


def test_an_enclave_that_ends_is_started_once_more_and_then_given_up(nitro: World) -> None:
    nitro.launch()
    parent = nitro.parent
    parent.end_enclaves()
    check_machine(nitro.work().plan, nitro.launch())
    assert len(parent.enclaves()) == 1
    parent.end_enclaves()
    with refuses("nitro.enclave.ended", DeniedError):
        nitro.launch()


def _one_step(nitro: World) -> None:
    assert isinstance(nitro.cloud.launch(nitro.work()), Wait)


def test_a_set_up_without_packages_says_so(nitro: World) -> None:
    _one_step(nitro)
    (nitro.parent.state / "no-repositories").touch()
    with refuses("nitro.parent.packages", DeniedError) as caught:
        nitro.launch()
    assert "Failed to download metadata" in caught.value.message


def test_a_set_up_without_the_image_says_who_must_be_allowed_to_read_it(nitro: World) -> None:
    _one_step(nitro)
    (key,) = [one for one in nitro.left()["object"] if one.endswith(".eif")]
    nitro.s3.delete_object(Bucket=nitro.bucket, Key=key)
    with refuses("nitro.parent.image", DeniedError) as caught:
        nitro.launch()
    assert isinstance(caught.value, DeniedError)
    assert f"arn:aws:s3:::{nitro.bucket}/eif/*" in caught.value.hint


def test_a_set_up_with_other_bytes_than_were_planned_ends(nitro: World) -> None:
    _one_step(nitro)
    (key,) = [one for one in nitro.left()["object"] if one.endswith(".eif")]
    nitro.s3.put_object(Bucket=nitro.bucket, Key=key, Body=b"other")
    with refuses("nitro.parent.image", DeniedError):
        nitro.launch()
    assert nitro.parent.enclaves() == []


def test_an_instance_too_small_for_its_enclave_says_so(nitro: World) -> None:
    _one_step(nitro)
    nitro.parent.have(cpu_count=2, memory_mib=256)
    with refuses("nitro.parent.allocator", DeniedError):
        nitro.launch()


def test_memory_below_what_the_image_needs_is_found_before_the_instance(
    tmp_path: Path, nitro_server: NitroAws
) -> None:
    with world(tmp_path, nitro_server, memory_mib=64) as small:
        resource = small.work().intend("image", *_image_place(small), facts={"region": REGION})
        small.work().present(resource, size=str(17 << 20))
        with refuses("nitro.memory", DeniedError) as caught:
            small.launch()
        assert isinstance(caught.value, DeniedError)
        assert "68" in caught.value.hint
        assert "instance" not in small.left()


def _image_place(small: World) -> tuple[str, str]:
    planned = small.work().deployment.planned
    assert planned is not None
    return f"eif/{small.uid}/{planned.image}.eif", small.bucket


# ---- what goes wrong at AWS ----


def test_an_agent_that_never_answers_is_given_up(quick_nitro: World) -> None:
    quick_nitro.fake.is_dead = True
    for _ in range(4):
        assert isinstance(quick_nitro.cloud.launch(quick_nitro.work()), Wait)
    quick_nitro.now += AGENT_SECONDS + 1
    with refuses("nitro.ssm.offline", DeniedError):
        quick_nitro.launch()
    assert quick_nitro.until_done(quick_nitro.cloud.remove) is None
    assert quick_nitro.left() == {}


def test_a_command_that_is_never_delivered_is_sent_again(quick_nitro: World) -> None:
    quick_nitro.fake.is_mute = True
    with refuses("nitro.ssm.undelivered", TransientCloudError):
        quick_nitro.launch()
    quick_nitro.fake.is_mute = False
    check_machine(quick_nitro.work().plan, quick_nitro.launch())


def test_a_slow_agent_fails_a_look_and_not_a_launch(quick_nitro: World) -> None:
    quick_nitro.fake.slow = 3
    quick_nitro.launch()
    quick_nitro.fake.slow = 1000
    with refuses("nitro.ssm.slow", TransientCloudError):
        quick_nitro.cloud.describe(quick_nitro.work())


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("InstanceLimitExceeded", 400, "aws.quota"),
        ("VcpuLimitExceeded", 400, "aws.quota"),
        ("InsufficientInstanceCapacity", 500, "aws.capacity"),
        ("UnauthorizedOperation", 403, "aws.denied"),
        ("RequestExpired", 400, "aws.expired"),
        ("AuthFailure", 401, "aws.credentials"),
    ],
)
def test_a_refused_order_says_what_to_do(quick_nitro: World, code: str, status: int, expected: str) -> None:
    quick_nitro.fake.fail("EC2 RunInstances", code, status=status, message="no")
    with refuses(expected, DeniedError) as caught:
        quick_nitro.launch()
    assert isinstance(caught.value, DeniedError)
    assert caught.value.hint
    quick_nitro.now += GRACE_SECONDS + 1
    assert quick_nitro.until_done(quick_nitro.cloud.remove) is None
    assert quick_nitro.left() == {}


@pytest.mark.parametrize(
    ("call", "code", "status", "expected", "after"),
    [
        ("EC2 DescribeInstances", "InternalError", 500, "aws.unavailable", False),
        ("EC2 RunInstances", "RequestLimitExceeded", 503, "aws.throttled", False),
        ("EC2 RunInstances", "InternalError", 500, "aws.unavailable", True),
        ("EC2 CreateSecurityGroup", "InternalError", 500, "aws.unavailable", True),
        ("EC2 AuthorizeSecurityGroupIngress", "RequestLimitExceeded", 503, "aws.throttled", True),
        ("AmazonSSM SendCommand", "ThrottlingException", 400, "aws.throttled", True),
        ("AmazonSSM GetCommandInvocation", "InternalServerError", 500, "aws.unavailable", False),
        ("PUT /artifacts", "SlowDown", 503, "aws.throttled", True),
    ],
)
def test_a_call_that_fails_for_now_is_made_again_and_makes_nothing_twice(
    quick_nitro: World, call: str, code: str, status: int, expected: str, *, after: bool
) -> None:
    quick_nitro.fake.fail(call, code, status=status, after=after)
    with refuses(expected, TransientCloudError):
        quick_nitro.launch()
    check_machine(quick_nitro.work().plan, quick_nitro.launch())
    assert {kind: len(names) for kind, names in quick_nitro.left().items()} == {
        "instance": 1,
        "group": 1,
        "volume": 1,
        "object": 2,
    }


def test_an_image_that_rotted_in_the_store_is_not_handed_over(quick_nitro: World, tmp_path: Path) -> None:
    planned = quick_nitro.work().deployment.planned
    assert planned is not None
    (tmp_path / "blobs" / planned.image).write_bytes(b"rotten")
    with refuses("deploy.blob.corrupt", StorageError):
        quick_nitro.launch()
    assert "object" not in quick_nitro.left()


def test_others_are_kept_away_while_an_image_is_handed_over(quick_nitro: World) -> None:
    held: list[int] = []

    def note(**_: object) -> None:
        lease = quick_nitro.store.get(NAME).lease
        assert lease is not None
        held.append(lease.until - quick_nitro.now)

    quick_nitro.change(lease=Lease("tests", "token", quick_nitro.now + 180))
    events = quick_nitro.s3.meta.events
    events.register("before-call.s3.PutObject", note, unique_id="note")
    try:
        assert isinstance(quick_nitro.cloud.launch(quick_nitro.work()), Wait)
    finally:
        events.unregister("before-call.s3.PutObject", unique_id="note")
    assert held[0] == UPLOAD_SECONDS


def test_a_large_image_is_handed_over_in_parts(quick_nitro: World) -> None:
    large = quick_nitro.blobs.put(bytes(range(256)) * 4096 * 9)
    planned = quick_nitro.work().deployment.planned
    assert planned is not None
    quick_nitro.replan("d2" * 32)
    quick_nitro.change(planned=msgspec.structs.replace(planned, image=large))
    _one_step(quick_nitro)
    (key,) = [one for one in quick_nitro.left()["object"] if large in one]
    assert quick_nitro.s3.head_object(Bucket=quick_nitro.bucket, Key=key)["ContentLength"] == 9 << 20
    assert any("partNumber=2" in call for call in quick_nitro.fake.calls)


# ---- groups and rules ----


def test_the_group_opens_the_evidence_and_the_apps_ports_and_no_other(quick_nitro: World) -> None:
    quick_nitro.launch()
    rules = quick_nitro.cloud.firewall(quick_nitro.work())
    assert [(one.protocol, one.port, one.sources) for one in rules] == [
        ("tcp", 8090, ("0.0.0.0/0",)),
        ("tcp", 8443, ("0.0.0.0/0",)),
    ]


def test_a_rule_replaces_what_its_port_had(quick_nitro: World) -> None:
    quick_nitro.launch()
    sources = ("198.51.100.0/24", "2001:db8::/32")
    quick_nitro.cloud.set_firewall(
        quick_nitro.work(), FirewallRule(action="allow", protocol="tcp", port=8443, sources=sources)
    )
    assert _sources(quick_nitro, 8443) == sources
    quick_nitro.launch()  # which does not undo it
    assert _sources(quick_nitro, 8443) == sources
    assert quick_nitro.cloud.clear_firewall(quick_nitro.work(), "tcp", 8443)
    assert not quick_nitro.cloud.clear_firewall(quick_nitro.work(), "tcp", 8443)
    assert _sources(quick_nitro, 8443) == ()


def _sources(nitro: World, port: int) -> tuple[str, ...]:
    rules = nitro.cloud.firewall(nitro.work())
    return next((one.sources for one in rules if one.port == port), ())


def test_a_deny_rule_is_refused_with_the_command_that_does_the_same(quick_nitro: World) -> None:
    quick_nitro.launch()
    rule = FirewallRule(action="deny", protocol="tcp", port=8443, sources=("0.0.0.0/0",))
    with refuses("nitro.firewall.deny", DeniedError) as caught:
        quick_nitro.cloud.set_firewall(quick_nitro.work(), rule)
    assert isinstance(caught.value, DeniedError)
    assert "fw remove tcp:8443" in caught.value.hint


def test_groups_that_the_project_brought_are_left_alone(tmp_path: Path, nitro_server: NitroAws) -> None:
    ec2 = nitro_server.lasting_client("ec2")
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    name = f"own-{tmp_path.name}-{id(tmp_path)}"
    group = ec2.create_security_group(GroupName=name, Description="own", VpcId=vpc)["GroupId"]
    with world(tmp_path, nitro_server, security_group_ids=(group,)) as own:
        own.launch()
        assert "group" not in own.left()
        assert own.cloud.firewall(own.work()) == []
        rule = FirewallRule(action="allow", protocol="tcp", port=1, sources=("192.0.2.0/24",))
        with refuses("nitro.firewall.foreign", DeniedError):
            own.cloud.set_firewall(own.work(), rule)
        assert own.until_done(own.cloud.remove) is None
    assert ec2.describe_security_groups(GroupIds=[group])["SecurityGroups"]


def test_a_group_of_that_name_in_other_hands_is_found_before_and_at_the_launch(quick_nitro: World) -> None:
    vpc = quick_nitro.ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0][
        "VpcId"
    ]
    quick_nitro.ec2.create_security_group(
        GroupName=group_name(NAME, quick_nitro.uid), Description="x", VpcId=vpc
    )
    codes = [one.code for one in quick_nitro.cloud.check(quick_nitro.work())]
    assert "nitro.name_taken" in codes
    with refuses("nitro.name_taken", DeniedError):
        quick_nitro.launch()


def test_a_parent_without_a_public_address_answers_on_its_own(tmp_path: Path, nitro_server: NitroAws) -> None:
    with world(tmp_path, nitro_server, no_public_ip=True) as hidden:
        machine = hidden.launch()
        order = hidden.order()
        assert order["NetworkInterface.1.AssociatePublicIpAddress"] == "false"
        assert machine.external_ip == ""
        assert machine.evidence_url == f"http://{machine.internal_ip}:8090/evidence"


# ---- logs ----


def test_logs_are_paged_by_a_cursor_and_bounded(nitro: World) -> None:
    nitro.launch()
    script = f"for n in $(seq 250); do echo line $n of the journal, {'x' * 40}; done"
    assert nitro.parent.run(f"systemd-cat -t dstack-bringup bash -c {script!r}").exit_code == 0
    text, cursor, pages = "", "", 0
    while True:
        page = nitro.cloud.logs(nitro.work(), cursor)
        assert len(page.text) <= LOG_PAGE
        if not page.text:
            break
        text, cursor, pages = text + page.text, page.cursor, pages + 1
    lines = [line for line in text.splitlines() if "of the journal" in line]
    assert [line.split()[3] for line in lines] == [str(n) for n in range(1, 251)]
    assert pages > 1
    assert "dstack-bringup: line 1 of" in lines[0]


def test_the_longest_line_that_json_can_make_is_read(nitro: World) -> None:
    nitro.launch()
    shown = "\N{GRINNING FACE}" * 2000  # twelve characters each, as JSON without anything but ASCII
    assert nitro.parent.run(f"systemd-cat -t dstack-bringup echo {shown}").exit_code == 0
    text, cursor = "", ""
    while (page := nitro.cloud.logs(nitro.work(), cursor)).text:
        text, cursor = text + page.text, page.cursor
    assert shown[:500] in text


@pytest.mark.parametrize("cursor", ["'; reboot; '", "$(id)", "a b", "x" * 600, "s=1\n"])
def test_a_cursor_that_is_none_never_reaches_the_shell(quick_nitro: World, cursor: str) -> None:
    with refuses("nitro.logs.cursor", ConfigError):
        quick_nitro.cloud.logs(quick_nitro.work(), cursor)


def test_logs_of_a_stopped_instance_are_refused(quick_nitro: World) -> None:
    with refuses("nitro.logs.stopped", DeniedError):
        quick_nitro.cloud.logs(quick_nitro.work())


# ---- looking before, and after ----


def test_a_project_that_fits_has_no_errors(quick_nitro: World) -> None:
    assert [
        one for one in quick_nitro.cloud.check(quick_nitro.work()) if one.severity is Severity.ERROR
    ] == []


@pytest.mark.parametrize(
    ("settings", "code"),
    [
        ({"instance_type": "t3.xlarge"}, "nitro.instance_type"),
        ({"instance_type": "zz9.large"}, "nitro.instance_type"),
        ({"cpu_count": 4}, "nitro.cpu_count"),
        ({"cpu_count": 1}, "nitro.cpu_count"),
        ({"memory_mib": 8192}, "nitro.memory_mib"),
        ({"bucket": "nobody-has-this-bucket"}, "nitro.bucket"),
        ({"iam_instance_profile": ""}, "nitro.settings.iam_instance_profile"),
        ({"arch": "aarch64"}, "nitro.forwarder.arch"),
        ({"ports": ("22",)}, "nitro.ports.reserved"),
    ],
)
def test_what_would_stop_a_launch_is_found_before(
    tmp_path: Path, nitro_server: NitroAws, settings: dict[str, object], code: str
) -> None:
    with world(tmp_path, nitro_server, **settings) as wrong:
        codes = [one.code for one in wrong.cloud.check(wrong.work()) if one.severity is Severity.ERROR]
        assert codes
        assert set(codes) == {code}
        assert wrong.left() == {}


def test_without_a_plan_the_projects_own_file_is_checked(quick_nitro: World) -> None:
    document = {"name": "web", "platform": "nitro", "nitro_config": {"region": "nowhere"}}
    blob = quick_nitro.blobs.put(json.dumps(document).encode())
    quick_nitro.change(planned=None, files=Files(project={"app.json": blob}))
    assert [one.code for one in quick_nitro.cloud.check(quick_nitro.work())] == ["nitro.settings.region"]


def test_a_look_that_is_not_allowed_is_a_finding_with_a_hint(quick_nitro: World) -> None:
    quick_nitro.fake.fail("EC2 DescribeInstances", "UnauthorizedOperation", status=403, message="not you")
    (found,) = [one for one in quick_nitro.cloud.check(quick_nitro.work()) if one.severity is Severity.ERROR]
    assert found.code == "aws.denied"


def test_a_deployment_that_never_began_is_described_and_removed(quick_nitro: World) -> None:
    assert quick_nitro.cloud.describe(quick_nitro.work()).status == "NOT_FOUND"
    assert quick_nitro.cloud.stop(quick_nitro.work()) == Machine(status="NOT_FOUND")
    with refuses("nitro.instance.missing", DeniedError):
        quick_nitro.cloud.start(quick_nitro.work())
    assert quick_nitro.cloud.remove(quick_nitro.work()) is None


def test_removal_finds_what_the_record_does_not_name(quick_nitro: World) -> None:
    quick_nitro.launch()
    forgotten = [msgspec.structs.replace(one, state="gone") for one in quick_nitro.resources()]
    quick_nitro.change(resources=tuple(forgotten))
    quick_nitro.s3.put_object(Bucket=quick_nitro.bucket, Key=f"eif/{quick_nitro.uid}/stray", Body=b"x")
    quick_nitro.s3.create_multipart_upload(Bucket=quick_nitro.bucket, Key=f"eif/{quick_nitro.uid}/half")
    assert quick_nitro.until_done(quick_nitro.cloud.remove) is None
    assert quick_nitro.left() == {}


def test_a_removal_waits_for_an_instance_that_nobody_saw_yet(quick_nitro: World) -> None:
    quick_nitro.fake.fail("EC2 RunInstances", "InternalError", status=500)
    with refuses("aws.unavailable", TransientCloudError):
        quick_nitro.launch()
    assert isinstance(quick_nitro.cloud.remove(quick_nitro.work()), Wait)
    quick_nitro.now += GRACE_SECONDS + 1
    assert quick_nitro.until_done(quick_nitro.cloud.remove) is None


def test_an_instance_of_a_lost_answer_that_shows_late_is_removed(
    tmp_path: Path, nitro_server: NitroAws
) -> None:
    # a group of its own could not be deleted under it, and would have the removal look again
    ec2 = nitro_server.lasting_client("ec2")
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    filters = [{"Name": "vpc-id", "Values": [vpc]}, {"Name": "group-name", "Values": ["default"]}]
    (group,) = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]
    with world(tmp_path, nitro_server, security_group_ids=(group["GroupId"],)) as nitro:
        nitro_server.fail("EC2 RunInstances", "RequestLimitExceeded", status=503)
        nitro_server.fail("EC2 RunInstances", "InternalError", status=500, after=True)
        nitro_server.hidden = 6
        for code in ("aws.throttled", "aws.unavailable"):
            with refuses(code, TransientCloudError):
                nitro.launch()
            nitro.now += 2 * GRACE_SECONDS  # as long as an order may have to be repeated
        nitro.change(step=Step.REMOVE, since=nitro.now)
        assert nitro.until_done(nitro.cloud.remove) is None
        nitro_server.hidden = 0
        for _ in range(6):
            assert nitro.left() == {}
        assert len(nitro_server.orders) == 1


def test_what_is_gone_is_gone_to_a_role_that_may_touch_our_tags_alone(quick_nitro: World) -> None:
    quick_nitro.launch()
    quick_nitro.ec2.terminate_instances(InstanceIds=[quick_nitro.parent.instance_id])
    quick_nitro.fake.is_conditioned = True
    assert quick_nitro.until_done(quick_nitro.cloud.remove) is None
    assert quick_nitro.left() == {}


def test_what_went_between_the_look_and_the_removal_is_gone_to_such_a_role(quick_nitro: World) -> None:
    quick_nitro.launch()
    quick_nitro.fake.is_conditioned = True
    ec2, instance_id = quick_nitro.ec2, quick_nitro.parent.instance_id
    (group,) = quick_nitro.left()["group"]
    ec2.terminate_instances(InstanceIds=[instance_id])
    assert not terminate_instance(ec2, instance_id)
    assert delete_group(ec2, group)
    assert delete_group(ec2, group)
    quick_nitro.fake.is_conditioned = False
    # and of what is there, such an answer is no more than it says
    quick_nitro.now += SHOW_SECONDS
    quick_nitro.launch()
    for call in ("TerminateInstances", "DeleteSecurityGroup"):
        quick_nitro.fake.fail(f"EC2 {call}", "UnauthorizedOperation", status=403, message="not you")
    with refuses("aws.denied", DeniedError):
        terminate_instance(ec2, quick_nitro.parent.instance_id)
    with refuses("aws.denied", DeniedError):
        delete_group(ec2, quick_nitro.left()["group"][0])


def test_a_disk_that_ends_meanwhile_is_gone_to_such_a_role(quick_nitro: World) -> None:
    tags = [{"Key": one["Name"][4:], "Value": one["Values"][0]} for one in tag_filters(quick_nitro.uid)]
    wanted = {"AvailabilityZone": f"{REGION}a", "Size": 8}
    specification = [{"ResourceType": "volume", "Tags": tags}]
    quick_nitro.ec2.create_volume(**wanted, TagSpecifications=specification)
    denied = {"status": 403, "message": "not you"}
    quick_nitro.fake.fail("EC2 DeleteVolume", "UnauthorizedOperation", **denied)
    with refuses("aws.denied", DeniedError):
        delete_volumes(quick_nitro.ec2, quick_nitro.uid)
    quick_nitro.fake.fail("EC2 DeleteVolume", "UnauthorizedOperation", after=True, **denied)
    assert delete_volumes(quick_nitro.ec2, quick_nitro.uid)


def test_a_group_that_was_made_and_does_not_show_yet_is_waited_for(quick_nitro: World) -> None:
    quick_nitro.fake.fail("EC2 CreateSecurityGroup", "InternalError", status=500, after=True)
    quick_nitro.fake.hidden_groups = 3
    codes = []
    for _ in range(2):
        with pytest.raises(TransientCloudError) as caught:
            quick_nitro.launch()
        codes.append(caught.value.code)
    assert codes == ["aws.unavailable", "nitro.group"]
    check_machine(quick_nitro.work().plan, quick_nitro.launch())
    assert len(quick_nitro.left()["group"]) == 1


def test_another_group_is_opened_like_the_first(quick_nitro: World) -> None:
    quick_nitro.launch()
    before = quick_nitro.cloud.firewall(quick_nitro.work())
    quick_nitro.replan("d2" * 32)
    assert quick_nitro.until_done(quick_nitro.cloud.retire) is None
    ec2, (first,) = quick_nitro.ec2, quick_nitro.left()["group"]
    vpc = ec2.create_vpc(CidrBlock="10.9.0.0/16")["Vpc"]["VpcId"]
    subnet = ec2.create_subnet(VpcId=vpc, CidrBlock="10.9.0.0/24")["Subnet"]["SubnetId"]
    quick_nitro.replan("d3" * 32, subnet_id=subnet)
    quick_nitro.launch()
    assert len(quick_nitro.left()["group"]) == 2
    assert quick_nitro.cloud.firewall(quick_nitro.work()) == before
    rule = FirewallRule(action="allow", protocol="tcp", port=9000, sources=("203.0.113.0/24",))
    quick_nitro.cloud.set_firewall(quick_nitro.work(), rule)
    (old,) = [one for one in find_groups(ec2, quick_nitro.uid) if one["GroupId"] == first]
    assert rule not in group_rules(old)
    assert quick_nitro.until_done(quick_nitro.cloud.remove) is None
    assert quick_nitro.left() == {}


def test_rules_are_those_of_the_region_that_the_instance_is_in(quick_nitro: World) -> None:
    quick_nitro.launch()
    before = quick_nitro.cloud.firewall(quick_nitro.work())
    facts = {"group_id": "sg-0123456789abcdef0"}
    left = Resource(kind="group", name="old", place="us-east-1", state="present", keep=True, facts=facts)
    quick_nitro.change(resources=(left, *quick_nitro.resources()))
    assert quick_nitro.cloud.firewall(quick_nitro.work()) == before != []


@pytest.mark.parametrize("source", ["2001:DB8::/32", "2001:0db8::/32", "203.0.113.7"])
def test_a_rule_that_is_made_again_in_another_spelling_stays(quick_nitro: World, source: str) -> None:
    quick_nitro.launch()
    rule = FirewallRule(action="allow", protocol="tcp", port=9000, sources=(source,))
    for _ in range(2):
        quick_nitro.cloud.set_firewall(quick_nitro.work(), rule)
    (made,) = [one for one in quick_nitro.cloud.firewall(quick_nitro.work()) if one.port == 9000]
    assert made.sources == (str(ip_network(source)),)


def test_a_plan_for_another_region_leaves_the_instance_where_it_is(quick_nitro: World) -> None:
    quick_nitro.launch()
    regions = set()

    def clients(service: str, region: str) -> AwsClient:
        regions.add(region)
        return quick_nitro.clients[service]

    quick_nitro.replan("d2" * 32, region="us-east-1")
    cloud = AwsNitroCloud(bundle, clients=clients, clock=lambda: quick_nitro.now)
    assert cloud.describe(quick_nitro.work()).status == "RUNNING"
    assert quick_nitro.until_done(cloud.stop).status == "STOPPED"
    assert regions == {REGION}


def test_an_instance_that_somebody_ended_is_replaced(quick_nitro: World) -> None:
    quick_nitro.launch()
    first = quick_nitro.parent.instance_id
    quick_nitro.ec2.terminate_instances(InstanceIds=[first])
    assert isinstance(quick_nitro.cloud.launch(quick_nitro.work()), Wait)  # it may only not be listed yet
    quick_nitro.now += SHOW_SECONDS
    machine = quick_nitro.launch()
    check_machine(quick_nitro.work().plan, machine)
    assert quick_nitro.parent.instance_id != first
    assert find_instances(quick_nitro.ec2, quick_nitro.uid)[0].instance_id != first


def test_a_lost_process_is_passing_and_an_unknown_code_is_not() -> None:
    assert isinstance(enclave_failure(39, "", 512), TransientCloudError)
    assert enclave_failure(99, "odd", 512).code == "nitro.enclave.failed"


def test_an_instance_is_put_into_the_projects_subnet(tmp_path: Path, nitro_server: NitroAws) -> None:
    ec2 = nitro_server.lasting_client("ec2")
    subnet = ec2.describe_subnets(Filters=[{"Name": "default-for-az", "Values": ["true"]}])["Subnets"][0]
    with world(tmp_path, nitro_server, subnet_id=subnet["SubnetId"], no_public_ip=True) as placed:
        placed.launch()
        assert placed.order()["NetworkInterface.1.SubnetId"] == subnet["SubnetId"]
        assert placed.until_done(placed.cloud.remove) is None
    with world(tmp_path / "other", nitro_server, subnet_id="subnet-0123456789abcdef0") as lost:
        with refuses("aws.request", CloudError):
            lost.launch()
        assert lost.until_done(lost.cloud.remove) is None
        assert lost.left() == {}


def test_a_start_that_aws_has_no_room_for_says_so(quick_nitro: World) -> None:
    quick_nitro.launch()
    quick_nitro.until_done(quick_nitro.cloud.stop)
    quick_nitro.fake.fail("EC2 StartInstances", "InsufficientInstanceCapacity", status=500)
    with refuses("aws.capacity", DeniedError):
        quick_nitro.until_done(quick_nitro.cloud.start)
    check_machine(quick_nitro.work().plan, quick_nitro.until_done(quick_nitro.cloud.start))


def test_a_removal_takes_a_disk_that_was_left_and_waits_for_a_group_in_use(quick_nitro: World) -> None:
    quick_nitro.launch()
    tags = [{"Key": one["Name"][4:], "Value": one["Values"][0]} for one in tag_filters(quick_nitro.uid)]
    quick_nitro.ec2.create_volume(
        AvailabilityZone=f"{REGION}a", Size=8, TagSpecifications=[{"ResourceType": "volume", "Tags": tags}]
    )
    quick_nitro.fake.fail("EC2 DeleteSecurityGroup", "DependencyViolation", times=2)
    answers = []
    while (answer := quick_nitro.cloud.remove(quick_nitro.work())) is not None:
        answers.append(answer.what)
    assert answers == [
        "the instance to end",
        "the security group to be free",
        "the security group to be free",
    ]
    assert quick_nitro.left() == {}


def test_a_set_up_without_an_end_is_given_up(quick_nitro: World) -> None:
    assert isinstance(quick_nitro.cloud.launch(quick_nitro.work()), Wait)
    quick_nitro.parent.boot = lambda: Ran(0, "", "")  # type: ignore[method-assign]
    for _ in range(4):
        assert isinstance(quick_nitro.cloud.launch(quick_nitro.work()), Wait)
    quick_nitro.now += ENCLAVE_SECONDS + 1
    with refuses("nitro.parent.slow", DeniedError):
        quick_nitro.launch()


def test_a_look_at_a_silent_instance_is_for_later(quick_nitro: World) -> None:
    quick_nitro.launch()
    quick_nitro.fake.is_dead = True
    with refuses("nitro.ssm.offline", TransientCloudError):
        quick_nitro.cloud.describe(quick_nitro.work())
    # and it can be stopped all the same
    assert quick_nitro.until_done(quick_nitro.cloud.stop).status == "STOPPED"


@pytest.mark.parametrize(
    ("call", "code", "status", "expected"),
    [
        ("AmazonSSM GetParameter", "ParameterNotFound", 400, "nitro.ami"),
        ("HEAD /artifacts", "403", 403, "nitro.bucket"),
    ],
)
def test_what_is_missing_in_the_account_is_found_before(
    quick_nitro: World, call: str, code: str, status: int, expected: str
) -> None:
    quick_nitro.fake.fail(call, code, status=status)
    found = [one for one in quick_nitro.cloud.check(quick_nitro.work()) if one.severity is Severity.ERROR]
    assert [one.code for one in found] == [expected]


class NoNetworks:
    """An EC2 client of an account without networks."""

    def describe_subnets(self, **_: object) -> dict[str, list[object]]:
        return {"Subnets": []}

    def describe_vpcs(self, **_: object) -> dict[str, list[object]]:
        return {"Vpcs": []}


@pytest.mark.parametrize(("subnet", "error"), [("", DeniedError), ("subnet-0123456789abcdef0", CloudError)])
def test_an_account_without_the_network_is_told(subnet: str, error: type[CloudError]) -> None:
    with refuses("nitro.vpc", error):
        ensure_group(NoNetworks(), NAME, "uid", subnet)  # type: ignore[arg-type] # all that it asks before


def test_a_record_without_an_instance_names_none_to_ask(quick_nitro: World) -> None:
    with refuses("nitro.instance.unrecorded", CloudError):
        recorded_instance(quick_nitro.work())
