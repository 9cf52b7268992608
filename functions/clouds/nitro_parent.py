"""What is written onto an enclave's parent instance, as text: its user data, units and configurations.

Nothing of it is trusted: the parent is outside of the TEE, and only its evidence shows what an enclave is.
The checks made here (hashes, PCRs) find a mistake before an enclave starts, no attacker.

Everything that is filled in was checked by `nitro_settings`, and is quoted for the shell all the same.
"""

import json
import shlex
from typing import Final

import msgspec

from functions.clouds.nitro_settings import ENCLAVE_CID, ENCLAVE_NAME, NitroSettings
from functions.deploy.cloud import EVIDENCE_PORT, progress_egress
from shared.compose.enclave_toml import ENV_PORT, PROGRESS_PORT
from shared.errors import ConfigError

STATE: Final = "/var/lib/dstack"
"""On the parent: the image, how far the bring-up came (`bringup.done`, `bringup.failed`), `enclave.exit`."""

FORWARDER_UNIT: Final = "dstack-forwarder.service"
ENCLAVE_UNIT: Final = "dstack-enclave.service"
BRINGUP_LOG: Final = "dstack-bringup"
"""The identifier under which the journal has what user data printed."""

ENCLAVE_EVIDENCE_PORT: Final = 8080
"""The vsock port of the enclave's evidence responder (`[evidence] port` of `enclave.toml`)."""

EGRESS_PORT: Final = 3128
MAX_USER_DATA: Final = 16384
"""EC2's limit, before base64."""

ENCRYPTED_ENV: Final = f"{STATE}/encrypted-env"
"""The app's ciphertext, which the forwarder offers to the enclave, and which everybody may read."""

PROGRESS_URL: Final = f"{STATE}/progress-url"
"""Where the enclave may tell how its boot goes, which the forwarder offers to it; blank for nowhere."""

EXIT_OTHER_BYTES: Final = 70
EXIT_OTHER_PCRS: Final = 71
"""How `run-enclave` ends when the image is not the planned one; nitro-cli's own codes are below 60."""

CONNECTIONS_PER_PORT: Final = 256


class Download(msgspec.Struct, frozen=True):
    """An object that the parent fetches, and the SHA-256 (hex) that it must have."""

    bucket: str
    key: str
    sha256: str

    @property
    def url(self) -> str:
        """`s3://bucket/key`."""
        return f"s3://{self.bucket}/{self.key}"


def allocator_config(settings: NitroSettings) -> str:
    """Return `/etc/nitro_enclaves/allocator.yaml`: flat keys after `---`, or the service refuses it."""
    return f"---\nmemory_mib: {settings.memory_mib}\ncpu_count: {settings.cpu_count}\n"


def forwarder_config(settings: NitroSettings, progress_url: str = "") -> str:
    """Return the forwarder's TOML: ports and evidence inwards, the allow-list outwards, files on request."""
    lines = ["[limits]", "connections = 2048", f"connections_per_listener = {CONNECTIONS_PER_PORT}"]
    lines += ["head_seconds = 5.0", "connect_seconds = 10.0", "idle_seconds = 300.0", ""]
    rules = [("evidence", EVIDENCE_PORT, ENCLAVE_EVIDENCE_PORT)]
    rules += [(f"port-{port.listen}", port.listen, port.target) for port in settings.ports]
    for name, listen, target in rules:
        lines += ["[[inbound]]", f'name = "{name}"', f'listen = "0.0.0.0:{listen}"']
        lines += [f'target = "vsock://{ENCLAVE_CID}:{target}"', ""]
    lines += ["[[outbound]]", 'name = "egress"', f"listen = {EGRESS_PORT}", f"peers = [{ENCLAVE_CID}]"]
    by_host = progress_egress(progress_url)
    for one in settings.egress:
        if one.port not in by_host.setdefault(one.host, []):
            by_host[one.host].append(one.port)
    allowed = [f"  {{ host = {json.dumps(host)}, ports = {ports} }}," for host, ports in by_host.items()]
    lines += ["allow = [", *allowed, "]", ""]
    # an enclave that wants variables asks whether there are any: no file means none
    for name, port, file in (("env", ENV_PORT, ENCRYPTED_ENV), ("progress", PROGRESS_PORT, PROGRESS_URL)):
        lines += ["[[offer]]", f'name = "{name}"', f"listen = {port}", f'file = "{file}"']
        lines += [f"peers = [{ENCLAVE_CID}]", ""]
    return "\n".join(lines)


def forwarder_unit(python: str) -> str:
    """Return the forwarder's unit: a user of its own, no file to write, no socket but inet and vsock.

    It may not reach the metadata service, which would give the enclave's peers the instance's role.
    """
    return f"""[Unit]
Description=dstack forwarder between the network and the enclave of this instance
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
ExecStart=/usr/bin/{python} -I /opt/dstack/forwarder --config /etc/dstack/forwarder.toml
DynamicUser=yes
Restart=always
RestartSec=2
LimitNOFILE=16384
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectControlGroups=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_VSOCK
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
IPAddressDeny=169.254.169.254/32 fd00:ec2::254/128
UMask=0077

[Install]
WantedBy=multi-user.target
"""


def enclave_unit() -> str:
    """Return the unit that starts the enclave at every boot, and ends it before the instance stops."""
    return f"""[Unit]
Description=dstack enclave of this instance
Requires=nitro-enclaves-allocator.service
After=nitro-enclaves-allocator.service {FORWARDER_UNIT}
StartLimitIntervalSec=600
StartLimitBurst=3

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/dstack/run-enclave
ExecStop=/usr/local/lib/dstack/stop-enclave
TimeoutStartSec=600
TimeoutStopSec=120
Restart=on-failure
RestartSec=15

[Install]
WantedBy=multi-user.target
"""


def run_script(settings: NitroSettings, image: Download) -> str:
    """Return `run-enclave`: check the image's hash, then its PCRs, then run it, unless one runs already.

    Its exit code, which is nitro-cli's, stays in `enclave.exit`, and what went wrong in `enclave.err`.
    """
    pcrs = " ".join(shlex.quote(settings.pcrs[name]) for name in sorted(settings.pcrs))
    return f"""#!/bin/bash
set -euo pipefail
export NITRO_CLI_ARTIFACTS={STATE}/artifacts
rm -f {STATE}/enclave.exit
exec 2>{STATE}/enclave.err
trap 'code=$?; printf "%s\\n" "$code" >{STATE}/enclave.exit; cat {STATE}/enclave.err' EXIT
printf '%s  %s\\n' {shlex.quote(image.sha256)} {STATE}/app.eif | sha256sum --check --status || {{
  echo 'app.eif has other bytes than were planned' >&2
  exit {EXIT_OTHER_BYTES}
}}
nitro-cli describe-eif --eif-path {STATE}/app.eif | /usr/bin/python3 -c '
import json, sys
measured = json.load(sys.stdin)["Measurements"]
wanted = dict(zip(("PCR0", "PCR1", "PCR2"), sys.argv[1:]))
sys.exit(any(measured.get(name) != value for name, value in wanted.items()))
' {pcrs} || {{
  echo 'app.eif measures other PCRs than were planned' >&2
  exit {EXIT_OTHER_PCRS}
}}
nitro-cli describe-enclaves | /usr/bin/python3 -c '
import json, sys
sys.exit(not any(one.get("State") == "RUNNING" for one in json.load(sys.stdin)))
' && exit 0
nitro-cli run-enclave --eif-path {STATE}/app.eif --cpu-count {settings.cpu_count} \\
  --memory {settings.memory_mib} --enclave-cid {ENCLAVE_CID} --enclave-name {ENCLAVE_NAME} \\
  >{STATE}/enclave.json
"""


def stop_script() -> str:
    """Return `stop-enclave`: nothing left to end is as good as ended."""
    return f"""#!/bin/bash
set -euo pipefail
nitro-cli describe-enclaves | grep '"EnclaveID"' >/dev/null || exit 0
nitro-cli terminate-enclave --enclave-name {ENCLAVE_NAME}
"""


def user_data(
    settings: NitroSettings,
    image: Download,
    forwarder: Download,
    python: str,
    *,
    env: Download | None = None,
    progress_url: str = "",
) -> str:
    """Return the script that cloud-init runs as root at the first boot; running it again does no harm.

    `python` names the interpreter that the forwarder's bundle is for (`python3.11`), `env` the app's
    encrypted environment, where it has one, `progress_url` where the enclave may tell its progress. Raises
    `ConfigError("nitro.user_data")` for more than EC2 takes.
    """
    files = [
        ("/etc/nitro_enclaves/allocator.yaml", "644", allocator_config(settings)),
        ("/etc/dstack/forwarder.toml", "644", forwarder_config(settings, progress_url)),
        (f"/etc/systemd/system/{FORWARDER_UNIT}", "644", forwarder_unit(python)),
        (f"/etc/systemd/system/{ENCLAVE_UNIT}", "644", enclave_unit()),
        ("/usr/local/lib/dstack/run-enclave", "755", run_script(settings, image)),
        ("/usr/local/lib/dstack/stop-enclave", "755", stop_script()),
        (PROGRESS_URL, "644", f"{progress_url}\n"),
    ]
    written = "\n".join(
        f"install -D -m {mode} /dev/stdin {path} <<'DSTACK_FILE'\n{text}DSTACK_FILE"
        for path, mode, text in files
    )
    script = f"""#!/bin/bash
set -euo pipefail
umask 022
mkdir -p {STATE}/artifacts /opt/dstack
[ -e {STATE}/bringup.done ] && exit 0
rm -f {STATE}/bringup.failed
step=begin
exec >{STATE}/bringup.log 2>&1
finish() {{
  code=$?
  systemd-cat -t {BRINGUP_LOG} cat {STATE}/bringup.log || true
  if [ "$code" = 0 ]; then touch {STATE}/bringup.done; else printf '%s\\n' "$step" >{STATE}/bringup.failed; fi
}}
trap finish EXIT
fetch() {{
  for pause in 2 4 8 16 32 0; do
    aws s3 cp --no-progress --region {shlex.quote(settings.region)} "$1" "$3.part" && break
    sleep "$pause"
  done
  printf '%s  %s\\n' "$2" "$3.part" | sha256sum --check --status
  mv -f "$3.part" "$3"
}}

step=packages
if ! command -v nitro-cli || ! command -v {python}; then
  dnf install -y aws-nitro-enclaves-cli {python}
fi

step=files
{written}
systemctl daemon-reload

step=allocator
systemctl enable nitro-enclaves-allocator.service
systemctl restart nitro-enclaves-allocator.service

step=forwarder
fetch {shlex.quote(forwarder.url)} {shlex.quote(forwarder.sha256)} {STATE}/forwarder.tar.gz
rm -rf /opt/dstack/forwarder.new
mkdir /opt/dstack/forwarder.new
tar --extract --gzip --no-same-owner --directory /opt/dstack/forwarder.new --file {STATE}/forwarder.tar.gz
rm -rf /opt/dstack/forwarder
mv /opt/dstack/forwarder.new /opt/dstack/forwarder
systemctl enable {FORWARDER_UNIT}
systemctl restart {FORWARDER_UNIT}

step=env
{_fetch_env(env)}

step=image
fetch {shlex.quote(image.url)} {shlex.quote(image.sha256)} {STATE}/app.eif

step=enclave
systemctl enable {ENCLAVE_UNIT}
systemctl start {ENCLAVE_UNIT}
step=end
"""
    if len(script.encode()) > MAX_USER_DATA:
        raise ConfigError(
            "nitro.user_data",
            f"user data has {len(script.encode())} bytes, at most {MAX_USER_DATA} are possible: name fewer "
            "ports or egress targets",
        )
    return script


def _fetch_env(env: Download | None) -> str:
    if env is None:
        return f"rm -f {ENCRYPTED_ENV}"
    return f"fetch {shlex.quote(env.url)} {shlex.quote(env.sha256)} {ENCRYPTED_ENV}"
