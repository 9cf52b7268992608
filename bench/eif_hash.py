"""OS_IMAGE_HASH of a given EIF against the SHA-384 that it takes.

PCR0 is over everything that boots, PCR2 over all ramdisks but the first; PCR1 is a prefix of PCR0. So the
least work is one SHA-384 over all payloads and one over the later ramdisks, from memory in one call each. Our
pass reads the file, checks its structure and its CRC-32 besides. The image has the proportions of a real one:
a kernel and a bootstrap of some 10 MiB, and the rest the customer's.
"""

import io
import os
import tempfile
from hashlib import sha384
from pathlib import Path

from bench.measure import Bar, Result, compare
from shared.measurement.eif import measure_eif, write_eif
from shared.measurement.eif_metadata import BuildMetadata, EifMetadata

KERNEL_SIZE = 10 << 20
BOOTSTRAP_SIZE = 768 << 10
MIB = int(os.environ.get("EIF_MIB", "64"))
"""Size of the customer's ramdisk; EIF_MIB=1024 measures an image of 1 GiB."""


def measure() -> Result:
    """Measure a file in the page cache."""
    block = os.urandom(1 << 20)
    kernel, bootstrap, customer = block * 10, block[:BOOTSTRAP_SIZE], block * MIB
    build = BuildMetadata(
        build_time="", build_tool="", build_tool_version="", operating_system="", kernel_version=""
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.eif"
        with path.open("w+b") as file:
            write_eif(
                file,
                kernel=io.BytesIO(kernel),
                cmdline=b"console=ttyS0",
                ramdisks=[io.BytesIO(bootstrap), io.BytesIO(customer)],
                metadata=EifMetadata(
                    image_name="",
                    image_version="",
                    build_metadata=build,
                    docker_info=None,
                    custom_metadata=None,
                ),
                arch="x86_64",
            )
        boot = kernel + bootstrap

        def ours() -> None:
            with path.open("rb") as file:
                measure_eif(file)

        def reference() -> None:
            everything = sha384(boot)
            everything.update(customer)
            everything.digest()
            sha384(customer).digest()

        what = f"measure_eif of a {MIB} MiB ramdisk, against the two SHA-384 passes in it"
        return compare("eif-hash", what, ours, reference, bar=Bar("at most", 1.2), rounds=8, count=1)
