"""What a project that somebody handed in may not name on Google Cloud, unless the operator did.

Whoever may deploy one app writes its app.json. All deployments of a project share their boot and data images,
so what they are made from is the operator's to say; and of a service account that a machine has, any program
in its guest gets tokens.
"""

from collections.abc import Iterator

import msgspec

from functions.clouds.gcp_settings import Site
from functions.deploy.cloud import DeniedError
from shared.compose.project import GCP_DEFAULTS, GcpConfig, merged


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """`operator` are the settings for projects that do not say otherwise, from which these may not depart.

    `accounts` are addresses of further service accounts that they may name.
    """

    operator: GcpConfig = GcpConfig()
    accounts: frozenset[str] = frozenset()

    def check(self, site: Site) -> None:
        """Raise the first of the `refusals`."""
        for _, refusal in self.refusals(site):
            raise refusal

    def refusals(self, site: Site) -> Iterator[tuple[str, DeniedError]]:
        """Return what a site names beyond its limits: the field of `gcp_config`, and why not.

        Codes: `gcp.limits.service_account`, `gcp.limits.bucket`, `gcp.limits.data_image`.
        """
        own = GcpConfig(project=site.settings.project)
        given = msgspec.structs.replace(site, settings=merged(own, self.operator, GCP_DEFAULTS))
        account = str(site.settings.service_account)
        if account not in {"", str(given.settings.service_account), *self.accounts}:
            yield (
                "service_account",
                DeniedError(
                    "gcp.limits.service_account",
                    f"service account {account[:80]!a} is none that machines get from here",
                    "leave service_account out, or have the operator list it in DSTACK_SERVICE_ACCOUNTS",
                ),
            )
        if site.bucket != given.bucket:
            yield (
                "bucket",
                DeniedError(
                    "gcp.limits.bucket",
                    f"bucket {site.bucket[:80]!a} is not the one that images are made from, {given.bucket}",
                    "leave bucket out, or have the operator name it in DSTACK_CONFIG",
                ),
            )
        data_image = str(site.settings.data_image)
        if data_image != given.settings.data_image:
            yield (
                "data_image",
                DeniedError(
                    "gcp.limits.data_image",
                    f"image {data_image[:80]!a} is not the one that data disks start as, "
                    f"{given.settings.data_image}",
                    "leave data_image out, or have the operator name it in DSTACK_CONFIG",
                ),
            )
