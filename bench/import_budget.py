"""What importing a function's handler costs beyond the third-party packages that it stands on.

The profiles of those packages alone take 130-190 ms (verify) and 140-190 ms (authorize) with bytecode in
place; the budget for the whole handler is 200 ms. 200 ms over the middle of the range, 160 ms, is the bar as
a ratio: 1.25. It holds on machines of any speed, where 200 ms does not. Memory depends little on the machine,
so its bar is absolute: 45 MB for verify and 40 MB for authorize, of the whole interpreter. governance is held
to the bars of authorize; it also stands on threads, for endpoints at once, and on hmac.

Each import runs in an interpreter of its own that times itself: the start of the interpreter is not in it.
On AWS both sides run in the package that is deployed, which `functions.packaging` builds first, with its
bytecode and nothing else on the path.
"""

import statistics
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench.measure import Bar, Result, alternate, median_ratio
from functions.packaging.aws_zip import build_zip, runtime_of
from functions.packaging.targets import AWS_FUNCTIONS

BAR = Bar("at most", 1.25)
VERIFY_MEGABYTES, AUTHORIZE_MEGABYTES = 45.0, 40.0
ROUNDS = 15

VERIFY_PROFILE = """
import msgspec
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
import dcap_qvl
"""

AUTHORIZE_PROFILE = """
import msgspec
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from Crypto.Hash import keccak
import http.client, ssl
"""

# The budget, 350 ms, is the middle of what these take, 300 to 410 ms.
DEPLOY_AWS_PROFILE = """
import msgspec
from aws_lambda_powertools import Logger
import boto3
boto3.client('ec2', region_name='eu-west-1')
"""
DEPLOY_AWS_BAR, DEPLOY_AWS_MEGABYTES = Bar("at most", 1.0), 69.0

# The budget, 180 ms, is over the 150 ms that these take.
DEPLOY_GCP_PROFILE = """
import msgspec
import flask, functions_framework
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
"""
DEPLOY_GCP_BAR, DEPLOY_GCP_MEGABYTES = Bar("at most", 1.2), 60.0

GOVERNANCE_AWS_PROFILE = AUTHORIZE_PROFILE + "import hmac, concurrent.futures.thread"
GOVERNANCE_GCP_PROFILE = """
import msgspec
import flask, functions_framework
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from Crypto.Hash import keccak
import http.client, ssl, hmac, concurrent.futures.thread
"""
GOVERNANCE_GCP_MEGABYTES = 60.0

_TEMPLATE = """
import json, resource, time
def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 10**6
memory = resident()
wall, cpu = time.perf_counter(), time.process_time()
{imports}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({{'cpu': cpu, 'wall': wall, 'memory': resident(), 'own': resident() - memory}}))
"""


class ImportResult(Result, frozen=True, kw_only=True):
    """Two bars: the CPU ratio of every result, and megabytes (10^6 bytes) of resident memory."""

    megabytes: float
    megabytes_bar: float

    @property
    def passed(self) -> bool:
        return self.bar is not None and self.bar.holds(self.ratio) and self.megabytes <= self.megabytes_bar


class _Import(msgspec.Struct, frozen=True):
    cpu: float
    wall: float
    memory: float  # resident MB of the whole interpreter
    own: float  # MB of that by the import


def verify() -> Result:
    """Measure the verify function."""
    return _budget(
        "import-verify", "functions.verify.aws", VERIFY_PROFILE, VERIFY_MEGABYTES, package="verify"
    )


def authorize() -> Result:
    """Measure the authorize function."""
    return _budget(
        "import-authorize",
        "functions.authorize.aws",
        AUTHORIZE_PROFILE,
        AUTHORIZE_MEGABYTES,
        package="authorize",
    )


def deploy_aws() -> Result:
    """Measure the deploy function on AWS: its handler alone, boto3 comes with the first call."""
    return _budget(
        "import-deploy-aws",
        "functions.deploy.aws",
        DEPLOY_AWS_PROFILE,
        DEPLOY_AWS_MEGABYTES,
        DEPLOY_AWS_BAR,
        package="deploy",
    )


def deploy_gcp() -> Result:
    """Measure the deploy function on Google Cloud: its clients come with the first call."""
    return _budget(
        "import-deploy-gcp", "functions.deploy.gcp", DEPLOY_GCP_PROFILE, DEPLOY_GCP_MEGABYTES, DEPLOY_GCP_BAR
    )


def governance_aws() -> Result:
    """Measure the governance function on AWS: its handlers alone, boto3 comes with the first call."""
    return _budget(
        "import-governance-aws",
        "functions.governance.aws",
        GOVERNANCE_AWS_PROFILE,
        AUTHORIZE_MEGABYTES,
        package="governance",
    )


def governance_gcp() -> Result:
    """Measure the governance function on Google Cloud: its clients come with the first call."""
    return _budget(
        "import-governance-gcp",
        "functions.governance.gcp",
        GOVERNANCE_GCP_PROFILE,
        GOVERNANCE_GCP_MEGABYTES,
    )


def _budget(
    name: str, module: str, profile: str, megabytes_bar: float, bar: Bar = BAR, *, package: str = ""
) -> Result:
    path = str(Path(_packages().name) / package) if package else ""
    if package:
        function = next(one for one in AWS_FUNCTIONS if one.name == package)
        build_zip(function, runtime_of(), Path(_packages().name))
    pairs = alternate(lambda: _import(f"import {module}", path), lambda: _import(profile, path), ROUNDS)
    ours, reference = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    cpu, reference_cpu = min(run.cpu for run in ours), min(run.cpu for run in reference)
    megabytes = statistics.median(run.memory for run in ours)
    return ImportResult(
        name=name,
        what=f"import {module}, against its third-party packages alone",
        ours=cpu,
        reference=reference_cpu,
        ratio=cpu / reference_cpu,
        bar=bar,
        megabytes=megabytes,
        megabytes_bar=megabytes_bar,
        detail={
            "median ratio": median_ratio([(our.cpu, ref.cpu) for our, ref in pairs]),
            "fastest wall ms": min(run.wall for run in ours) * 1e3,
            "fastest reference wall ms": min(run.wall for run in reference) * 1e3,
            "memory MB": megabytes,
            "memory bar MB": megabytes_bar,
            "memory by the import MB": statistics.median(run.own for run in ours),
            "reference memory MB": statistics.median(run.memory for run in reference),
        },
    )


def _import(imports: str, path: str) -> _Import:
    script = _TEMPLATE.format(imports=imports)
    options = (
        ["-I", "-S", "-c", f"import sys\nsys.path[:0] = [{path!r}]\n{script}"] if path else ["-c", script]
    )
    run = subprocess.run([sys.executable, *options], check=True, capture_output=True)  # noqa: S603 - our script
    return msgspec.json.decode(run.stdout.splitlines()[-1], type=_Import)


@cache
def _packages() -> "TemporaryDirectory[str]":
    # removed when the process ends
    return TemporaryDirectory()
