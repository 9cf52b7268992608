"""The checked-in code is what protoc makes of the .proto files."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
PROTOS = sorted((REPOSITORY / "shared/rpc").glob("*.proto"))


@pytest.mark.parametrize("proto", PROTOS, ids=lambda proto: proto.stem)
def test_the_generated_code_is_fresh(proto: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools is not installed: cannot generate the messages afresh")
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=."]
    command += [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}", str(proto.relative_to(REPOSITORY))]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    for name in (f"{proto.stem}_pb2.py", f"{proto.stem}_pb2.pyi"):
        fresh = tmp_path / "shared" / "rpc" / name
        assert fresh.read_text() == (REPOSITORY / "shared" / "rpc" / name).read_text()
