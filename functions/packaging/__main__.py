"""`python -m functions.packaging`: build all that is deployed, and say how large it is."""

import argparse
import sys
from pathlib import Path

import msgspec

from functions.packaging.aws_zip import build_zip, runtime_of
from functions.packaging.gcp_source import stage_source
from functions.packaging.targets import ARCHITECTURES, AWS_FUNCTIONS, GCP_FUNCTIONS
from shared.errors import DstackError, ExitCode


def main(arguments: list[str]) -> int:
    """Build below `--out`: `aws/<name>.zip`, `gcp/<name>/`, and `packages.json`, which lists them."""
    parser = argparse.ArgumentParser(prog="python -m functions.packaging", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build"), help="directory to write to")
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter of the version that the functions run on"
    )
    parser.add_argument(
        "--architecture", choices=list(ARCHITECTURES), default="", help="of the AWS functions"
    )
    options = parser.parse_args(arguments)
    try:
        runtime = runtime_of(options.python, options.architecture)
        zips = [build_zip(one, runtime, options.out / "aws") for one in AWS_FUNCTIONS]
        sources = [stage_source(one, runtime, options.out / "gcp") for one in GCP_FUNCTIONS]
    except DstackError as error:
        sys.stderr.write(f"error: {error.message} ({error.code})\n")
        return error.exit_code
    document = msgspec.json.format(msgspec.json.encode({"aws": zips, "gcp": sources}))
    (options.out / "packages.json").write_bytes(document + b"\n")
    for package in zips:
        sys.stdout.write(
            f"{options.out / 'aws' / package.name}.zip  {package.runtime} {package.architecture}  "
            f"{package.unzipped / 10**6:.1f} of {package.budget / 10**6:.0f} MB  sha256 {package.sha256}\n"
        )
    for source in sources:
        sys.stdout.write(
            f"{options.out / 'gcp' / source.name}/  {source.runtime}  "
            f"{source.size / 10**6:.1f} of {source.budget / 10**6:.0f} MB\n"
        )
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
