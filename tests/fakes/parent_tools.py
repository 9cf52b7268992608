# ruff: noqa: T201 - command lines print
"""Stand-ins for what an enclave's parent has: systemctl, journalctl, systemd-cat, dnf, aws and sleep.

Run as a program under one of these names. The machine is a directory (PARENT_ROOT) with its unit files, and
NITRO_FAKE_STATE beside it: `active.json`, `enabled.json`, `journal.jsonl`.
"""

import json
import os
import re
import sys
from pathlib import Path

ALLOCATOR = "nitro-enclaves-allocator.service"
ROOT = Path(os.environ["PARENT_ROOT"])
STATE = Path(os.environ["NITRO_FAKE_STATE"])


def read(name: str, default):
    path = STATE / name
    return json.loads(path.read_text()) if path.exists() else default


def write(name: str, value) -> None:
    (STATE / name).write_text(json.dumps(value))


def journal(text: str, *, unit: str = "", identifier: str = "") -> None:
    path = STATE / "journal.jsonl"
    number = len(path.read_text().splitlines()) if path.exists() else 0
    with path.open("a") as file:
        for line in text.splitlines():
            number += 1
            entry = {
                "__CURSOR": f"s=fake;i={number:x}",
                "__REALTIME_TIMESTAMP": str(1_790_000_000_000_000 + number),
                "MESSAGE": line,
                "SYSLOG_IDENTIFIER": identifier or unit.removesuffix(".service"),
            } | ({"_SYSTEMD_UNIT": unit} if unit else {})
            file.write(json.dumps(entry) + "\n")


# ---- systemctl ----


def setting(unit: str, name: str) -> str:
    text = (ROOT / "etc/systemd/system" / unit).read_text()
    found = re.search(rf"^{name}=(.*)$", text, re.MULTILINE)
    return found[1] if found else ""


def execute(unit: str, command: str) -> int:
    import subprocess  # noqa: PLC0415 - slow to load, and most calls start nothing

    ran = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    journal(ran.stdout + ran.stderr, unit=unit)
    return ran.returncode


def allocate() -> int:
    """Read allocator.yaml as the service does, and set aside what the machine has."""
    lines = (ROOT / "etc/nitro_enclaves/allocator.yaml").read_text().splitlines()
    machine = read("machine.json", {"cpu_count": 2, "memory_mib": 7168})
    wanted = dict(re.fullmatch(r"(\w+): ([0-9]+)", line).groups() for line in lines[1:])
    if lines[0] != "---" or set(wanted) != {"memory_mib", "cpu_count"}:
        journal("Error: invalid configuration", unit=ALLOCATOR)
        return 1
    if any(int(wanted[key]) > machine[key] for key in wanted):
        journal("Error: insufficient resources", unit=ALLOCATOR)
        print("Job for nitro-enclaves-allocator.service failed", file=sys.stderr)
        return 1
    write("pool.json", {key: int(value) for key, value in wanted.items()})
    return 0


def start(unit: str) -> int:
    active = read("active.json", [])
    if unit in active:
        return 0
    if unit == ALLOCATOR:
        code = allocate()
    elif setting(unit, "Type") == "oneshot":
        for needed in setting(unit, "Requires").split():
            if start(needed):
                return 1
        code = execute(unit, setting(unit, "ExecStart"))
    else:
        journal(f"started {setting(unit, 'ExecStart')}", unit=unit)
        code = 0
    if code == 0:
        write("active.json", [*read("active.json", []), unit])
    return 1 if code else 0


def stop(unit: str) -> int:
    active = read("active.json", [])
    if unit in active:
        if unit != ALLOCATOR and (command := setting(unit, "ExecStop")):
            execute(unit, command)
        write("active.json", [one for one in active if one != unit])
    return 0


def systemctl(arguments: list[str]) -> int:
    words = [one for one in arguments if not one.startswith("-")]
    command, unit = words[0], (words[1] if len(words) > 1 else "")
    if command == "enable":
        enabled = read("enabled.json", [])
        write("enabled.json", [*enabled, *([unit] if unit not in enabled else [])])
        return 0
    if command == "is-active":
        is_active = unit in read("active.json", [])
        print("active" if is_active else "inactive")
        return 0 if is_active else 3
    if command in {"daemon-reload", "reset-failed"}:
        return 0
    if command == "boot":  # ours: what systemd does when the machine comes up
        return max([start(one) for one in read("enabled.json", [])], default=0)
    if command == "shutdown":
        for one in reversed(read("active.json", [])):
            stop(one)
        write("enclaves.json", [])
        return 0
    if command == "restart":
        stop(unit)
    return {"start": start, "restart": start, "stop": stop}[command](unit)


# ---- the rest ----


def journalctl(arguments: list[str]) -> int:
    after = next((one.split("=", 1)[1] for one in arguments if one.startswith("--after-cursor=")), "")
    matches = [one.split("=", 1) for one in arguments if re.match(r"^_?[A-Z_]+=", one)]
    path = STATE / "journal.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    entries = [json.loads(line) for line in lines]
    known = [entry["__CURSOR"] for entry in entries]
    first = known.index(after) + 1 if after in known else 0
    try:
        for entry in entries[first:]:
            if any(entry.get(field) == value for field, value in matches):
                print(json.dumps(entry), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 0


def systemd_cat(arguments: list[str]) -> int:
    import subprocess  # noqa: PLC0415 - as above

    ran = subprocess.run(arguments[2:], capture_output=True, text=True, check=False)
    journal(ran.stdout, identifier=arguments[1])
    return ran.returncode


def dnf(arguments: list[str]) -> int:
    if (STATE / "no-repositories").exists():
        print("Error: Failed to download metadata for repo 'amazonlinux'", file=sys.stderr)
        return 1
    write("installed.json", arguments)
    (STATE / "hidden" / "nitro-cli").rename(Path(sys.argv[0]).parent / "nitro-cli")
    return 0


def aws(arguments: list[str]) -> int:
    """`aws s3 cp s3://BUCKET/KEY FILE`, without a look at who asks."""
    import socket  # noqa: PLC0415 - of this tool alone; an HTTP library takes longer to load than to talk

    source, target = [one for one in arguments if not one.startswith("-")][-2:]
    host, port = os.environ["PARENT_S3"].removeprefix("http://").split(":")
    scope = "Credential=PARENT/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
    head = f"GET /{source.removeprefix('s3://')} HTTP/1.0\r\nHost: {host}:{port}\r\n"
    with socket.create_connection((host, int(port))) as connection, connection.makefile("rb") as answer:
        connection.sendall(f"{head}Authorization: AWS4-HMAC-SHA256 {scope}\r\n\r\n".encode())
        status, _, body = answer.read().partition(b"\r\n")
    if b" 200 " not in status:
        print(f"fatal error: {status.decode()}", file=sys.stderr)
        return 1
    Path(target).write_bytes(body.partition(b"\r\n\r\n")[2])
    return 0


TOOLS = {
    "systemctl": systemctl,
    "journalctl": journalctl,
    "systemd-cat": systemd_cat,
    "dnf": dnf,
    "aws": aws,
    "sleep": lambda _: 0,
}

if __name__ == "__main__":
    sys.exit(TOOLS[Path(sys.argv[0]).name](sys.argv[1:]))
