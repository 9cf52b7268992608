"""What importing a function's handler costs beyond the third-party packages that it stands on.

The profiles of those packages alone take 130-190 ms (verify) and 140-190 ms (authorize) with bytecode in
place; the budget for the whole handler is 200 ms. 200 ms over the middle of the range, 160 ms, is the bar as
a ratio: 1.25. It holds on machines of any speed, where 200 ms does not.

Each import runs in an interpreter of its own that times itself: the start of the interpreter is not in it.
"""

import statistics
import subprocess
import sys

import msgspec

from bench.measure import Bar, Result, alternate, median_ratio

BAR = Bar("at most", 1.25)
ROUNDS = 15

VERIFY_PROFILE = """
import msgspec
from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver
from aws_lambda_powertools.utilities.typing import LambdaContext
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
"""

AUTHORIZE_PROFILE = """
import msgspec
from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from Crypto.Hash import keccak
import http.client, ssl
"""

_TEMPLATE = """
import json, resource, time
def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20
memory = resident()
wall, cpu = time.perf_counter(), time.process_time()
{imports}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({{'cpu': cpu, 'wall': wall, 'memory': resident(), 'own': resident() - memory}}))
"""


class _Import(msgspec.Struct, frozen=True):
    cpu: float
    wall: float
    memory: float  # resident MiB of the whole interpreter
    own: float  # MiB of that by the import


def verify() -> Result:
    """Measure the verify function."""
    return _budget("import-verify", "functions.verify.aws", VERIFY_PROFILE)


def authorize() -> Result:
    """Measure the authorize function."""
    return _budget("import-authorize", "functions.authorize.aws", AUTHORIZE_PROFILE)


def _budget(name: str, module: str, profile: str) -> Result:
    pairs = alternate(lambda: _import(f"import {module}"), lambda: _import(profile), ROUNDS)
    ours, reference = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    cpu, reference_cpu = min(run.cpu for run in ours), min(run.cpu for run in reference)
    return Result(
        name=name,
        what=f"import {module}, against its third-party packages alone",
        ours=cpu,
        reference=reference_cpu,
        ratio=cpu / reference_cpu,
        bar=BAR,
        detail={
            "median ratio": median_ratio([(our.cpu, ref.cpu) for our, ref in pairs]),
            "fastest wall ms": min(run.wall for run in ours) * 1e3,
            "fastest reference wall ms": min(run.wall for run in reference) * 1e3,
            "memory MiB": statistics.median(run.memory for run in ours),
            "memory by the import MiB": statistics.median(run.own for run in ours),
            "reference memory MiB": statistics.median(run.memory for run in reference),
        },
    )


def _import(imports: str) -> _Import:
    script = _TEMPLATE.format(imports=imports)
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)  # noqa: S603
    return msgspec.json.decode(run.stdout.splitlines()[-1], type=_Import)
