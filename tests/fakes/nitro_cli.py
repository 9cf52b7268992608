# ruff: noqa: T201 - a command line prints
"""A stand-in for nitro-cli: the commands, JSON and exit codes of deploy spec 5B.4; run as a program.

Its state is a directory, named by NITRO_FAKE_STATE: `enclaves.json` what runs, `pool.json` what the allocator
set aside, `measured.json` what images measure, `faults.json` exit codes by command, and
`lies.json` fields that `describe-enclaves` shows in the place of the true ones.
"""

import argparse
import hashlib
import json
import os
import sys
from pathlib import Path

RESERVED_CIDS = {1, 2, 3, 0xFFFF_FFFF}
MEMORY_RATIO = 4


class FailedError(Exception):
    """nitro-cli's way to fail: a sentence on stderr, and its own number as the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class State:
    """Files of one machine."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def read(self, name: str, default):
        path = self.directory / name
        return json.loads(path.read_text()) if path.exists() else default

    def write(self, name: str, value) -> None:
        (self.directory / name).write_text(json.dumps(value))

    def check_fault(self, command: str) -> None:
        code = self.read("faults.json", {}).get(command, 0)
        if code:
            raise FailedError(code, "asked to fail")


def measurements(state: State, eif: Path) -> dict[str, str]:
    digest = hashlib.sha256(eif.read_bytes()).hexdigest()
    known = state.read("measured.json", {})
    if digest not in known:
        sys.path.extend(os.environ["NITRO_FAKE_PATH"].split(os.pathsep))
        from shared.measurement.eif import measure_eif  # noqa: PLC0415 - only for an image not seen before

        with eif.open("rb") as file:
            found = measure_eif(file)
        known[digest] = {f"PCR{n}": getattr(found, f"pcr{n}").hex() for n in range(3)}
        state.write("measured.json", known)
    return {"HashAlgorithm": "Sha384 { ... }", **known[digest]}


def size_mib(text: str) -> int:
    units = {"M": 1, "G": 1024, "T": 1024 * 1024}
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def run_enclave(state: State, options: argparse.Namespace) -> dict:
    enclaves = state.read("enclaves.json", [])
    eif = Path(options.eif_path)
    if not eif.exists():
        raise FailedError(14, "[ E14 ] File operation failure")
    pool = state.read("pool.json", None)
    if pool is None:
        raise FailedError(5, "[ E05 ] the device /dev/nitro_enclaves is not there")
    if options.enclave_cid in RESERVED_CIDS:
        raise FailedError(29, "[ E29 ] CID is reserved")
    memory = size_mib(options.memory)
    used_cpus = sum(one["NumberOfCPUs"] for one in enclaves)
    used_memory = sum(one["MemoryMiB"] for one in enclaves)
    if options.cpu_count > pool["cpu_count"] - used_cpus:
        raise FailedError(22, "[ E22 ] Insufficient CPUs available")
    if memory * 1024 * 1024 < eif.stat().st_size * MEMORY_RATIO:
        raise FailedError(26, "[ E26 ] Insufficient memory requested")
    if memory > pool["memory_mib"] - used_memory:
        raise FailedError(27, "[ E27 ] Insufficient memory available")
    if not os.environ.get("NITRO_CLI_ARTIFACTS"):
        raise FailedError(51, "[ E51 ] Artifacts path environment variable not set")
    known = {one["EnclaveName"] for one in enclaves}
    name = options.enclave_name or eif.stem
    while name in known:
        name = f"{name.rsplit('_', 1)[0]}_{len(known)}"
    slot = state.read("slot.json", 0) + 1
    state.write("slot.json", slot)
    cids = {one["EnclaveCID"] for one in enclaves}
    enclave = {
        "EnclaveName": name,
        "EnclaveID": f"{os.environ['NITRO_FAKE_INSTANCE']}-enc{slot:016x}",
        "ProcessID": 4000 + slot,
        "EnclaveCID": options.enclave_cid or next(cid for cid in range(16, 1 << 31) if cid not in cids),
        "NumberOfCPUs": options.cpu_count,
        "CPUIDs": list(range(1, 1 + options.cpu_count)),
        "MemoryMiB": memory + memory % 2,
    }
    described = {
        **enclave,
        "State": "RUNNING",
        "Flags": "DEBUG_MODE" if options.debug_mode else "NONE",
        "Measurements": measurements(state, eif),
    }
    state.write("enclaves.json", [*enclaves, {**described, "EifPath": str(eif)}])
    print("Start allocating memory...", file=sys.stderr)
    return enclave


def describe_enclaves(state: State, options: argparse.Namespace) -> list[dict]:
    lies = state.read("lies.json", {})
    shown = []
    for one in state.read("enclaves.json", []):
        entry = {key: value for key, value in one.items() if key != "EifPath"} | lies
        if options.metadata:
            entry |= {"ImageName": "app", "ImageVersion": "1.0", "Metadata": {"BuildTool": "stand-in"}}
        shown.append(entry)
    return shown


def terminate_enclave(state: State, options: argparse.Namespace):
    enclaves = state.read("enclaves.json", [])
    chosen = [
        one
        for one in enclaves
        if options.all or options.enclave_name == one["EnclaveName"] or options.enclave_id == one["EnclaveID"]
    ]
    if not chosen and not options.all:
        raise FailedError(21, "[ E21 ] No enclave with this name or id")
    state.write("enclaves.json", [one for one in enclaves if one not in chosen])
    answers = [
        {"EnclaveName": one["EnclaveName"], "EnclaveID": one["EnclaveID"], "Terminated": True}
        for one in chosen
    ]
    return answers if options.all else answers[0]


def describe_eif(state: State, options: argparse.Namespace) -> dict:
    return {
        "EifVersion": 4,
        "Measurements": measurements(state, Path(options.eif_path)),
        "IsSigned": False,
        "CheckCRC": True,
        "ImageName": "app",
        "ImageVersion": "1.0",
        "Metadata": {},
    }


def console(state: State, options: argparse.Namespace):
    enclaves = state.read("enclaves.json", [])
    one = next((one for one in enclaves if one["EnclaveName"] == options.enclave_name), None)
    if one is None or one["Flags"] != "DEBUG_MODE":
        raise FailedError(44, "[ E44 ] Enclave console connection failure")
    sys.stdout.write((state.directory / "console").read_text())


COMMANDS = {
    "run-enclave": run_enclave,
    "describe-enclaves": describe_enclaves,
    "terminate-enclave": terminate_enclave,
    "describe-eif": describe_eif,
    "console": console,
}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="nitro-cli")
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run-enclave")
    run.add_argument("--eif-path", required=True)
    run.add_argument("--cpu-count", type=int, required=True)
    run.add_argument("--memory", required=True)
    run.add_argument("--enclave-cid", type=int, default=0)
    run.add_argument("--enclave-name")
    run.add_argument("--debug-mode", action="store_true")
    commands.add_parser("describe-enclaves").add_argument("--metadata", action="store_true")
    end = commands.add_parser("terminate-enclave")
    end.add_argument("--enclave-id")
    end.add_argument("--enclave-name")
    end.add_argument("--all", action="store_true")
    commands.add_parser("describe-eif").add_argument("--eif-path", required=True)
    look = commands.add_parser("console")
    look.add_argument("--enclave-name", required=True)
    look.add_argument("--disconnect-timeout", type=int)
    return top


def main() -> int:
    options = parser().parse_args()
    state = State(Path(os.environ["NITRO_FAKE_STATE"]))
    try:
        state.check_fault(options.command)
        answer = COMMANDS[options.command](state, options)
    except FailedError as failure:
        print(failure, file=sys.stderr)
        return failure.code
    if answer is not None:
        print(json.dumps(answer, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
