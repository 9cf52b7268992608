"""Each refusal that `dstack-cloud verify` can show says what to change."""

import ast
from collections.abc import Iterator

import pytest

from cli.verify_hints import HINTS, hint_for
from tests.docs.references import REPOSITORY, is_error_code, tree

# What raises while a file is read, endorsements are gathered and evidence is judged.
SOURCES = (
    "cli/evidence_file.py",
    "cli/verify.py",
    "shared/attestation/**/*.py",
    *(f"shared/measurement/{name}.py" for name in ("documents", "images", "mr_config", "os_image")),
    *(f"shared/measurement/{name}.py" for name in ("tdx_registers", "vm_config")),
    "shared/net/endorsement_source.py",
    "shared/net/fetch.py",
    "shared/net/dialer.py",
    "shared/net/issuers.py",
    "shared/net/pccs.py",
    "shared/ratls/extensions.py",
    "shared/ratls/peer.py",
)
ERRORS = {"InvalidEvidence", "PolicyDenied", "ProtocolError", "UnavailableError"}
GENERAL = hint_for("nothing.of.ours", None)
# Raised where evidence is made, not where it is judged.
ELSEWHERE = ("tcg_log.", "report_data.", "verify.save")
# Bytes that are no evidence at all: the general hint says what is.
ENCODINGS = ("cbor.", "envelope.", "scale.", "msgpack.", "verify.file.unknown")


def codes() -> Iterator[str]:
    """Every code that stands as a literal at a raise; of a composed one its literal beginning."""
    for pattern in SOURCES:
        files = sorted(REPOSITORY.glob(pattern))
        assert files, pattern
        for file in files:
            for node in ast.walk(tree(file.relative_to(REPOSITORY).as_posix())):
                if not isinstance(node, ast.Call) or getattr(node.func, "id", "") not in ERRORS:
                    continue
                code = node.args[0] if node.args else None
                if isinstance(code, ast.Constant) and isinstance(code.value, str):
                    yield code.value
                elif isinstance(code, ast.JoinedStr) and isinstance(code.values[0], ast.Constant):
                    yield str(code.values[0].value)


def test_each_code_has_a_hint_of_its_own() -> None:
    found = set(codes())
    assert len(found) > 150
    silent = {
        code
        for code in found
        if hint_for(code.rstrip("."), 1) == GENERAL and not code.startswith((*ELSEWHERE, *ENCODINGS))
    }
    # "tdx." stands for the checks of a domain, which are listed by name below
    assert silent <= {"tdx."}


@pytest.mark.parametrize(
    "code",
    [
        *("tdx.attributes.debug", "tdx.attributes.reserved", "tdx.attributes.sept_ve", "tdx.xfam"),
        *("tdx.mr_signer_seam", "tdx.seam_attributes", "tdx.mr_service_td", "tdx.dcap.disagrees"),
        *("tdx.collateral.future", "tdx.collateral.expired", "tdx.collateral.age", "tdx.quote.truncated"),
        *("nitro.chain.not_yet_valid", "gcp.uki.missing", "gcp.uki.repeated"),
    ],
)
def test_composed_codes_have_one_too(code: str) -> None:
    assert hint_for(code, 1) != GENERAL


def test_each_hint_is_of_a_code_that_something_raises() -> None:
    def raised(prefix: str) -> bool:
        return is_error_code(prefix) or any(code.startswith(f"{prefix}.") for code in codes())

    composed = {"tdx.attributes", "tdx.mr_signer_seam", "tdx.seam_attributes", "tdx.mr_service_td", "gcp.uki"}
    assert not {prefix for prefix in HINTS if not raised(prefix)} - composed


def test_the_longest_part_of_a_code_decides() -> None:
    assert hint_for("identity.os_image.acpi", 1) != hint_for("identity.os_image.mismatch", 1)
    assert hint_for("nitro_tpm.pcr14", 1) != hint_for("nitro.field", 1)
    assert hint_for("crl.revoked", 1) != hint_for("crl.missing", 1)


def test_the_evidences_own_time_is_named_where_it_is_known() -> None:
    assert hint_for("nitro.stale", 1766678659).endswith("--at 1766678659")
    assert hint_for("nitro.stale", None).endswith("--at UNIX")


def test_a_hint_is_one_line_without_an_end() -> None:
    for hint in HINTS.values():
        assert "\n" not in hint
        assert "  " not in hint
        assert not hint.endswith((".", " "))
