"""`dstack-cloud gov`: its commands, each loaded only when it is called."""

from typing import Final

import click

from cli.lazy_group import LazyGroup

COMMANDS: Final = {
    "accept-ownership": ("cli.gov.ownership:accept_ownership", "Take over what was transferred."),
    "app": ("cli.gov.app:app", "Register apps, and change what they may run."),
    "approve": ("cli.gov.approve:approve", "Make the calls that a plan says are missing."),
    "deploy": ("cli.gov.deploy:deploy", "Deploy the contracts, for a Safe to own."),
    "image": ("cli.gov.image:image", "Allow and revoke OS images."),
    "kms": ("cli.gov.kms:kms", "Allow key servers, and publish their keys."),
    "set-app-implementation": ("cli.gov.upgrade:set_app_implementation", "Set the code of new apps."),
    "set-gateway": ("cli.gov.kms:set_gateway", "Name the gateway that apps may trust."),
    "status": ("cli.gov.status:status", "Show who may change what, and what runs against the policy."),
    "transfer-ownership": ("cli.gov.ownership:transfer_ownership", "Offer a contract to another owner."),
    "upgrade": ("cli.gov.upgrade:upgrade", "Replace the code of a contract."),
    "watch": ("cli.gov.watch:watch", "Print events as they come."),
}


@click.command(cls=LazyGroup, table=COMMANDS)
def gov() -> None:
    """Show and change what the contracts allow.

    A command that changes something shows the call and who may make it, and sends nothing, unless --send
    (with a key) or --safe (a file that a Safe's owners sign) says otherwise; --dry-run tells whether the
    contract would take it.

    Exit codes: 0 ok or nothing to do, 1 failed, 2 usage, 3 refused, 4 changes pending, 5 needs a Safe's
    approval, 6 timed out.
    """
