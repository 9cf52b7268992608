"""`gov upgrade`: the code behind a contract is replaced by code that reads its storage right."""

from pathlib import Path

import click

from cli.gov.acting import carry_out
from cli.gov.chain import Block, Contracts
from cli.gov.change import Change
from cli.gov.code import (
    Code,
    code_of,
    code_text,
    describes,
    implementation_code,
    layout,
    layout_problems,
    read_described,
)
from cli.gov.options import Acting, Where, acting_options, address, contracts_of, hash32
from shared.chain.abi import checksum_address
from shared.chain.calldata import SET_APP_IMPLEMENTATION, UPGRADE_TO_AND_CALL
from shared.chain.code import APP, KMS
from shared.errors import PolicyDenied


def _code_options(command: "click.decorators.FC") -> "click.decorators.FC":
    for option in (
        click.option(
            "--artifact",
            type=click.Path(path_type=Path),
            help="What contracts/build.mjs wrote of code that is not known here: its storage is compared.",
        ),
        click.option(
            "--code-hash",
            metavar="HEX",
            help="Take unknown code of this hash, its storage unseen: you answer for it.",
        ),
    ):
        command = option(command)
    return command


@click.command()
@click.argument("contract", required=False)
@click.option("--to", "implementation", required=True, metavar="ADDR", help="The new implementation.")
@_code_options
@acting_options
def upgrade(
    contract: str | None,
    implementation: str,
    artifact: Path | None,
    code_hash: str | None,
    where: Where,
    acting: Acting,
) -> None:
    """Replace the code behind the KMS contract, or behind the app CONTRACT.

    Code that is of no known build is refused, unless --artifact or --code-hash names it; so is code whose
    storage is not the present one's continued. `gov deploy --only` makes an implementation.

    Exit codes: 0 so already or sent, 2 usage, 3 refused, 4 changes pending, 5 a Safe must sign, 6 timed out.
    """
    contracts = contracts_of(where)
    at = contracts.pin()
    proxy = where.kms if contract is None else address(contract, "CONTRACT")
    new = address(implementation, "--to")
    contracts.require_code(proxy, at)
    present = code_of(contracts, proxy, at)
    is_app = present.contract == APP or proxy != where.kms
    # of a KMS contract that slot holds a published key
    if is_app and contracts.upgrades_disabled(proxy, at):
        raise PolicyDenied(
            "gov.upgrade.disabled", f"upgrades of {checksum_address(proxy)} are disabled for ever"
        )
    notes = _checked(
        contracts,
        new,
        at,
        wanted=present.contract or (APP if is_app else KMS),
        artifact=artifact,
        code_hash=code_hash,
        present=present,
    )
    change = Change(to=proxy, function=UPGRADE_TO_AND_CALL, arguments=(new, b""), notes=notes)
    carry_out(where, acting, [change])


@click.command("set-app-implementation")
@click.argument("implementation")
@_code_options
@acting_options
def set_app_implementation(
    implementation: str, artifact: Path | None, code_hash: str | None, where: Where, acting: Acting
) -> None:
    """Have the factory make new apps of the code at IMPLEMENTATION. Apps that exist stay as they are.

    Exit codes: 0 so already or sent, 2 usage, 3 refused, 4 changes pending, 5 a Safe must sign, 6 timed out.
    """
    contracts = contracts_of(where)
    at = contracts.pin()
    new = address(implementation, "IMPLEMENTATION")
    notes = _checked(contracts, new, at, wanted=APP, artifact=artifact, code_hash=code_hash)
    carry_out(
        where,
        acting,
        [Change(to=where.kms, function=SET_APP_IMPLEMENTATION, arguments=(new,), notes=notes)],
    )


def _checked(
    contracts: Contracts,
    new: bytes,
    at: Block,
    *,
    wanted: str,
    artifact: Path | None,
    code_hash: str | None,
    present: Code | None = None,
) -> tuple[str, ...]:
    """Return what to note of new code.

    Raises `PolicyDenied`: `gov.upgrade.kind`, `gov.upgrade.unknown_code`, `gov.upgrade.code_hash`,
    `gov.upgrade.artifact`, `gov.upgrade.layout`; `ConfigError`: `gov.contract`, `gov.artifact`.
    """
    contracts.require_code(new, at)
    found = implementation_code(contracts, new, at)
    named = None if code_hash is None else hash32(code_hash, "--code-hash")
    if named not in {None, found.code_hash}:
        raise PolicyDenied(
            "gov.upgrade.code_hash",
            f"the code at {checksum_address(new)} has hash 0x{found.code_hash.hex()}, another than was named",
        )
    if found.contract not in {"", wanted}:
        raise PolicyDenied("gov.upgrade.kind", f"the new code is {found.contract}, expected {wanted}")
    is_present_known = present is None or bool(present.contract)
    if found.contract and is_present_known:
        return (f"the new code is {code_text(_bare(found))}",)
    if artifact is not None and is_present_known:
        described = read_described(artifact)
        if not describes(described, contracts.code(new, at), new):
            raise PolicyDenied(
                "gov.upgrade.artifact",
                f"the code at {checksum_address(new)} is not what {artifact} describes",
            )
        if problems := layout_problems(layout(wanted), described.storage_layout):
            raise PolicyDenied("gov.upgrade.layout", f"{problems[0]}, and {len(problems) - 1} more like that")
        return (f"the new code is what {artifact} describes: a KMS must pin it, or it gives no keys",)
    if named is None:
        which = "new" if is_present_known else "present"
        raise PolicyDenied(
            "gov.upgrade.unknown_code",
            f"the {which} code is of no known build, so nothing tells whether the storage fits; the new code "
            f"has hash 0x{found.code_hash.hex()}",
        )
    return ("the new code is of no known build, and its storage was not compared",)


def _bare(code: Code) -> Code:
    return Code(
        address=code.address,
        code_hash=code.code_hash,
        contract=code.contract,
        build=code.build,
        is_known_proxy=True,
    )
