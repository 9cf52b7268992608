"""`gov transfer-ownership` and `gov accept-ownership`: a contract changes hands in two steps."""

from typing import Final

import click

from cli.gov.acting import carry_out
from cli.gov.chain import ZERO_ADDRESS
from cli.gov.change import Change
from cli.gov.options import Acting, Where, acting_options, address
from shared.chain.calldata import ACCEPT_OWNERSHIP, TRANSFER_OWNERSHIP

_NOBODY: Final = "none"


@click.command("transfer-ownership")
@click.argument("new_owner")
@click.option("--app", "app_id", metavar="ADDR", help="Of this app's contract, not the KMS contract.")
@acting_options
def transfer_ownership(new_owner: str, app_id: str | None, where: Where, acting: Acting) -> None:
    """Offer the contract to NEW_OWNER, who must accept; `none` takes an offer back.

    The present owner stays until then. Giving ownership up for good is not offered: nobody could revoke
    anything any more.
    """
    owner = ZERO_ADDRESS if new_owner == _NOBODY else address(new_owner, "NEW_OWNER")
    note = (
        "the transfer that waits is taken back"
        if owner == ZERO_ADDRESS
        else ("the new owner must accept: until then nothing changes hands")
    )
    carry_out(
        where,
        acting,
        [Change(to=_contract(app_id, where), function=TRANSFER_OWNERSHIP, arguments=(owner,), notes=(note,))],
    )


@click.command("accept-ownership")
@click.option("--app", "app_id", metavar="ADDR", help="Of this app's contract, not the KMS contract.")
@acting_options
def accept_ownership(app_id: str | None, where: Where, acting: Acting) -> None:
    """Take over the contract, as the one it was offered to."""
    carry_out(where, acting, [Change(to=_contract(app_id, where), function=ACCEPT_OWNERSHIP)])


def _contract(app_id: str | None, where: Where) -> bytes:
    return where.kms if app_id is None else address(app_id, "--app")
