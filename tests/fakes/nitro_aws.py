"""AWS as a deployment of an enclave needs it: moto's EC2 and S3, and what moto does not model.

That is: EnclaveOptions, the idempotency of RunInstances, instances that take their time, user data that runs,
and Systems Manager's agent, which executes what it is sent on a `ParentInstance`.
"""

import base64
import io
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from threading import RLock
from typing import Any
from urllib.parse import parse_qs
from xml.etree import ElementTree as ET

import msgspec
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID

from functions.aws_api import AwsClient
from tests.fakes.aws import REGION, Answer, AwsServer, Environ, Fault, StartResponse
from tests.fakes.nitro_parent import Hooks, ParentInstance, QuickParent, Ran

_IN = "{*}"  # moto's answers are of more than one version of the API
SSM_LIMIT = 24000


class Command(msgspec.Struct):
    """A command that was sent, and what came of it."""

    instance_id: str
    script: str
    ran: Ran
    polls: int


class WrongError(Exception):
    """What Systems Manager refuses: its code."""


class NitroAws(AwsServer):
    """See the module. `parents` are the machines by instance id; `commands` what was sent, by command id.

    `hidden` is how often new instances, and `hidden_groups` how often groups, are not listed though they are
    there. With `is_conditioned`, the caller may change what has a tag alone, so what is gone is forbidden.
    `pending` is how often a new instance is described as pending; `offline` how often its agent is asked for
    before it answers, `slow` how often a result is. dead agents are never online, mute ones run nothing,
    and quick parents run no script. `measured` is what images measure by their SHA-256; others are measured.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lasting: dict[str, AwsClient] = {}
        self._power = RLock()
        self.reset(Path())

    def reset(self, directory: Path) -> None:
        """Forget machines, faults and lies; new machines are below `directory`. moto keeps its S3."""
        _forget_machines()
        self.directory = directory
        self.calls.clear()
        self._faults.clear()
        self.hooks = Hooks()
        self.parents: dict[str, ParentInstance] = {}
        self.commands: dict[str, Command] = {}
        self.orders: list[dict[str, str]] = []
        self.lies: dict[str, str] = {}
        self.pending = self.offline = self.slow = self.hidden = self.hidden_groups = 0
        self.is_conditioned = False
        self.is_dead = self.is_mute = self.is_quick = False
        self.measured: dict[str, dict[str, str]] = {}
        self.public_ip = ""
        self._tokens: dict[str, tuple[str, bytes]] = {}
        self._enclave: set[str] = set()
        self._left: dict[str, dict[str, int]] = {}
        self._up: set[str] = set()

    def lasting_client(self, service: str) -> AwsClient:
        """Return a client that all tests share: making one takes longer than a test."""
        if service not in self._lasting:
            self._lasting[service] = self.client(service)
        return self._lasting[service]

    # ---- requests ----

    def _serve(self, environ: Environ, start_response: StartResponse) -> Answer:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = io.BytesIO(body)
        form = {name: values[0] for name, values in parse_qs(body.decode("latin-1")).items()}
        target = environ.get("HTTP_X_AMZ_TARGET", "")
        if "/ec2/" in environ.get("HTTP_AUTHORIZATION", ""):
            return self._ec2(environ, start_response, form)
        if target.split(".")[-1] in _AGENT and target.startswith("AmazonSSM."):
            return self._agent(environ, start_response, target.split(".")[-1], json.loads(body or b"{}"))
        return super()._serve(environ, start_response)

    def _fault(self, call: str) -> Fault | None:
        with self._lock:
            self.calls.append(call)
            fault = next((one for one in self._faults if one.call in call), None)
            if fault is not None:
                fault.times -= 1
                if fault.times == 0:
                    self._faults.remove(fault)
        return fault

    # ---- EC2 ----

    def _ec2(self, environ: Environ, start_response: StartResponse, form: dict[str, str]) -> Answer:
        action = form.get("Action", "")
        fault = self._fault(f"EC2 {action}")
        if fault is not None and not fault.after:
            return _ec2_error(start_response, fault.code, fault.message, fault.status)
        status, headers, content = self._done(environ, form, action)
        if fault is not None:
            return _ec2_error(start_response, fault.code, fault.message, fault.status)
        kept = [(name, value) for name, value in headers if name.lower() != "content-length"]
        start_response(status, [*kept, ("Content-Length", str(len(content)))])
        return [content]

    def _done(self, environ: Environ, form: dict[str, str], action: str) -> tuple[str, list[Any], bytes]:
        with self._power:
            if action == "RunInstances":
                return self._run_instances(environ, form)
            if self.is_conditioned and self._is_untagged(action, form):
                body = _ec2_body("UnauthorizedOperation", "You are not authorized to perform this operation.")
                return "403 Fault", [("Content-Type", "text/xml")], body
            status, headers, content = self._moto_answer(environ)
            if status.startswith("200"):
                if action in {"StartInstances", "StopInstances", "TerminateInstances"}:
                    self._switch(
                        action, [value for name, value in form.items() if name.startswith("InstanceId")]
                    )
                if action == "DescribeInstances":
                    content = self._without_hidden(self._described(content))
                if action == "DescribeVolumes":
                    content = self._without_hidden(content)
                if action == "DescribeSecurityGroups" and self.hidden_groups > 0:
                    self.hidden_groups -= 1
                    content = _without(content, "securityGroupInfo", lambda _: True)
            return status, headers, content

    def _moto_answer(self, environ: Environ) -> tuple[str, list[Any], bytes]:
        answered: list[Any] = []
        with self._lock:
            content = b"".join(
                self._moto(environ, lambda *given: answered.extend(given[:2]) or (lambda _: None))
            )
        return answered[0], answered[1], content

    def _run_instances(self, environ: Environ, form: dict[str, str]) -> tuple[str, list[Any], bytes]:
        token = form.get("ClientToken", "")
        order = json.dumps(form, sort_keys=True)
        if token in self._tokens:
            known, content = self._tokens[token]
            if known != order:
                code = "IdempotentParameterMismatch"
                return "400 Fault", [("Content-Type", "text/xml")], _ec2_body(code, "another order")
            return "200 OK", [("Content-Type", "text/xml")], content
        status, headers, content = self._moto_answer(environ)
        if not status.startswith("200"):
            return status, headers, content
        self.orders.append(form)
        tree = ET.fromstring(content)  # noqa: S314 - moto's own
        instance_id = tree.findtext(f".//{_IN}instancesSet/{_IN}item/{_IN}instanceId") or ""
        if form.get("EnclaveOptions.Enabled") == "true":
            self._enclave.add(instance_id)
        self._left[instance_id] = {"pending": self.pending, "offline": self.offline, "booted": 0}
        self._left[instance_id]["hidden"] = self.hidden
        self._up.add(instance_id)
        self.parents[instance_id] = self._parent(instance_id, form.get("UserData", ""))
        content = self._described(content)
        self._tokens[token] = (order, content)
        return status, headers, content

    def _parent(self, instance_id: str, data: str) -> ParentInstance:
        place = self.directory / instance_id
        if self.is_quick:
            return QuickParent(place, instance_id, data, self.hooks)
        parent = ParentInstance(place, instance_id, data, self.url, self.hooks)
        parent.know(self.measured)
        return parent

    def _switch(self, action: str, instance_ids: list[str]) -> None:
        for instance_id in instance_ids:
            if action == "StartInstances":
                self._left[instance_id] = {"pending": self.pending, "offline": self.offline, "booted": 0}
                self._up.add(instance_id)
            elif instance_id in self._up:
                self._up.discard(instance_id)
                self.parents[instance_id].shut_down()

    def _described(self, content: bytes) -> bytes:
        tree = ET.fromstring(content)  # noqa: S314 - moto's own
        ET.register_namespace("", _space(tree))
        for item in tree.iterfind(f".//{_IN}instancesSet/{_IN}item"):
            instance_id = item.findtext(f"{_IN}instanceId") or ""
            is_enabled = self.lies.get("enclave", str(instance_id in self._enclave).lower())
            options = ET.SubElement(item, f"{{{_space(item)}}}enclaveOptions")
            ET.SubElement(options, f"{{{_space(item)}}}enabled").text = is_enabled
            if "instance_type" in self.lies:
                _set(item, "instanceType", self.lies["instance_type"])
            if self.public_ip:
                _set(item, "ipAddress", self.public_ip)
            left = self._left.get(instance_id, {})
            state = item.find(f"{_IN}instanceState")
            if state is not None and state.findtext(f"{_IN}name") == "running" and left.get("pending", 0) > 0:
                left["pending"] -= 1
                _set(state, "name", "pending")
                _set(state, "code", "0")
        return ET.tostring(tree)

    def _without_hidden(self, content: bytes) -> bytes:
        """Leave out instances that do not show yet, and their disks; each look lets time pass."""

        def is_hidden(item: ET.Element) -> bool:
            left = self._left.get(item.findtext(f".//{_IN}instanceId") or "", {})
            left["hidden"] = left.get("hidden", 0) - 1
            return left["hidden"] >= 0

        return _without(_without(content, "reservationSet", is_hidden), "volumeSet", is_hidden)

    def _is_untagged(self, action: str, form: dict[str, str]) -> bool:
        """Tell whether what is to be changed is gone, and its tags with it."""
        backend = get_backend("ec2")[DEFAULT_ACCOUNT_ID][REGION]
        if action in {"StartInstances", "StopInstances", "TerminateInstances"}:
            named = [value for name, value in form.items() if name.startswith("InstanceId")]
            found = [backend.get_instance_by_id(one) for one in named]
            return any(one is None or one.state == "terminated" for one in found)
        if action == "DeleteSecurityGroup":
            return backend.get_security_group_from_id(form["GroupId"]) is None
        return action == "DeleteVolume" and form["VolumeId"] not in backend.volumes

    # ---- Systems Manager ----

    def _agent(self, environ: Environ, start_response: StartResponse, action: str, given: Any) -> Answer:
        del environ
        fault = self._fault(f"AmazonSSM {action}")
        if fault is not None and not fault.after:
            return _json(start_response, fault.status, {"__type": fault.code, "message": fault.message})
        with self._power:
            try:
                answer = _AGENT[action](self, given)
            except WrongError as error:
                return _json(start_response, 400, {"__type": str(error), "message": "no such thing"})
        if fault is not None:
            return _json(start_response, fault.status, {"__type": fault.code, "message": fault.message})
        return _json(start_response, 200, answer)

    def _describe_agents(self, given: Any) -> dict[str, Any]:
        wanted = [value for one in given.get("Filters", []) for value in one["Values"]]
        return {
            "InstanceInformationList": [
                {"InstanceId": one, "PingStatus": "Online", "PlatformType": "Linux"}
                for one in wanted
                if one in self._up and self._is_online(one)
            ]
        }

    def _is_online(self, instance_id: str) -> bool:
        left = self._left[instance_id]
        if self.is_dead or left["pending"] > 0:
            return False
        left["offline"] -= 1
        return left["offline"] < 0

    def _send(self, given: Any) -> dict[str, Any]:
        (instance_id,) = given["InstanceIds"]
        if given["DocumentName"] != "AWS-RunShellScript" or not 30 <= given["TimeoutSeconds"] <= 2592000:
            raise WrongError("InvalidDocument")
        if instance_id not in self._up or self.is_dead:
            raise WrongError("InvalidInstanceId")
        parent = self.parents[instance_id]
        ran = Ran(-1, "", "") if self.is_mute else parent.run("\n".join(given["Parameters"]["commands"]))
        if not self._left[instance_id]["booted"]:
            # the first question comes while the machine is still busy with coming up
            self._left[instance_id]["booted"] = 1
            parent.boot()
        command_id = "-".join(secrets.token_hex(n) for n in (4, 2, 2, 2, 6))
        script = "\n".join(given["Parameters"]["commands"])
        self.commands[command_id] = Command(instance_id, script, ran, self.slow)
        return {"Command": {"CommandId": command_id, "Status": "Pending"}}

    def _invocation(self, given: Any) -> dict[str, Any]:
        command = self.commands.get(given["CommandId"])
        if command is None or command.instance_id != given["InstanceId"]:
            raise WrongError("InvocationDoesNotExist")
        command.polls -= 1
        base = {"CommandId": given["CommandId"], "InstanceId": command.instance_id}
        if command.polls >= 0:
            return base | {"Status": "InProgress", "ResponseCode": -1}
        if command.ran.exit_code < 0:
            return base | {"Status": "TimedOut", "StatusDetails": "DeliveryTimedOut", "ResponseCode": -1}
        return base | {
            "Status": "Success" if command.ran.exit_code == 0 else "Failed",
            "ResponseCode": command.ran.exit_code,
            "StandardOutputContent": command.ran.output[:SSM_LIMIT],
            "StandardErrorContent": command.ran.error[:SSM_LIMIT],
        }


_AGENT = {
    "DescribeInstanceInformation": NitroAws._describe_agents,
    "SendCommand": NitroAws._send,
    "GetCommandInvocation": NitroAws._invocation,
}


def _forget_machines() -> None:
    """Empty moto's lists, through all of which it goes for each tag of each answer."""
    backend = get_backend("ec2")[DEFAULT_ACCOUNT_ID][REGION]
    backend.reservations.clear()
    backend.volumes.clear()
    for groups in backend.groups.values():
        for group_id in [one for one in groups if one in backend.tags]:  # the others are the project's own
            del groups[group_id]
    for resource_id in [one for one in backend.tags if one.startswith(("i-", "vol-", "sg-"))]:
        del backend.tags[resource_id]


def user_data(order: dict[str, str]) -> str:
    """Return the script of an order."""
    return base64.b64decode(order["UserData"]).decode()


def _set(item: ET.Element, name: str, text: str) -> None:
    found = item.find(f"{_IN}{name}")
    (found if found is not None else ET.SubElement(item, f"{{{_space(item)}}}{name}")).text = text


def _without(content: bytes, group: str, is_unwanted: Callable[[ET.Element], bool]) -> bytes:
    tree = ET.fromstring(content)  # noqa: S314 - moto's own
    ET.register_namespace("", _space(tree))
    for found in tree.iterfind(f".//{_IN}{group}"):
        for item in list(found):
            if is_unwanted(item):
                found.remove(item)
    return ET.tostring(tree)


def _space(element: ET.Element) -> str:
    return element.tag[1:].split("}")[0]


def _ec2_body(code: str, message: str) -> bytes:
    error = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
    return f"<Response><Errors>{error}</Errors><RequestID>stand-in</RequestID></Response>".encode()


def _ec2_error(start_response: StartResponse, code: str, message: str, status: int) -> Answer:
    content = _ec2_body(code, message)
    start_response(f"{status} Fault", [("Content-Type", "text/xml"), ("Content-Length", str(len(content)))])
    return [content]


def _json(start_response: StartResponse, status: int, answer: Any) -> Answer:
    content = json.dumps(answer).encode()
    kind = "application/x-amz-json-1.1"
    start_response(f"{status} Answer", [("Content-Type", kind), ("Content-Length", str(len(content)))])
    return [content]
