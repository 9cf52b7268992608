"""`gov image`: which OS images may get keys, apps' and key servers' alike."""

from typing import NoReturn

import click

from cli.gov.acting import carry_out
from cli.gov.change import Change
from cli.gov.listed import list_options, print_allowed
from cli.gov.options import Acting, Where, acting_options, hash32
from shared.chain import events, views
from shared.chain.calldata import ADD_OS_IMAGE_HASH, REMOVE_OS_IMAGE_HASH, Function


@click.group()
def image() -> None:
    """Allow and revoke OS images. The contract does not tell platforms apart: an image is allowed for all."""


@image.command("add")
@click.argument("hashes", nargs=-1, required=True)
@acting_options
def add(hashes: tuple[str, ...], where: Where, acting: Acting) -> None:
    """Allow the OS images of HASHES, each 32 bytes in hex."""
    _each(ADD_OS_IMAGE_HASH, hashes, where, acting)


@image.command("remove")
@click.argument("hashes", nargs=-1, required=True)
@acting_options
def remove(hashes: tuple[str, ...], where: Where, acting: Acting) -> None:
    """Revoke OS images. It takes back no key that was released."""
    _each(REMOVE_OS_IMAGE_HASH, hashes, where, acting)


@image.command("list")
@list_options
def list_images(where: Where, from_block: int | None, *, everything: bool) -> None:
    """List the OS images that are allowed.

    Exit codes: 0 listed, 1 an endpoint failed, 2 usage.
    """
    print_allowed(
        where,
        from_block,
        [("images", events.OS_IMAGE_ADDED, views.ALLOWED_OS_IMAGES)],
        everything=everything,
    )


def _each(function: Function, hashes: tuple[str, ...], where: Where, acting: Acting) -> NoReturn:
    carry_out(
        where,
        acting,
        [Change(to=where.kms, function=function, arguments=(hash32(one, "HASH"),)) for one in hashes],
    )
