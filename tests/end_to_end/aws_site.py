"""AWS on this computer: moto, parents that run their scripts, and simulated enclaves on them."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from functions.clouds.ec2_group import find_groups
from functions.clouds.ec2_instances import find_instances, tag_filters
from tests.end_to_end.gcp_site import free_address, user_environment, verifier_environment
from tests.fakes.aws import REGION
from tests.fakes.guests import Roots, SimulatedGuests
from tests.fakes.nitro_aws import NitroAws
from tests.fakes.nitro_parent import Hooks

PROFILE = "dstack-parent"


class AwsSite:
    """`environment` is a user's: commands go to the stand-ins, and the enclaves' vendor is believed."""

    def __init__(self, place: Path, aws: NitroAws, roots: Roots, guests: SimulatedGuests) -> None:
        self.place = place
        self.aws = aws
        self.guests = guests
        self.address = free_address()
        self.bucket = f"artifacts-{secrets.token_hex(4)}"
        aws.public_ip = self.address
        guests.address = lambda _parent: self.address
        aws.hooks = Hooks(
            on_run_enclave=lambda parent, eif, cid: guests.run_enclave(parent.instance_id, eif, cid),
            on_end_enclave=lambda parent: guests.end_enclave(parent.instance_id),
            on_start_forwarder=lambda parent, config: guests.start_forwarder(parent.instance_id, config),
            on_stop_forwarder=lambda parent: guests.stop_forwarder(parent.instance_id),
        )
        self._ec2, self._s3 = aws.lasting_client("ec2"), aws.lasting_client("s3")
        iam = aws.lasting_client("iam")
        profiles = iam.list_instance_profiles()["InstanceProfiles"]
        if PROFILE not in [one["InstanceProfileName"] for one in profiles]:
            iam.create_instance_profile(InstanceProfileName=PROFILE)
        self.environment = user_environment(place) | verifier_environment(place, roots)
        self.environment |= {
            "AWS_ENDPOINT_URL": aws.url,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
            "AWS_SECRET_ACCESS_KEY": "throw-away",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def make_bucket(self) -> None:
        self._s3.create_bucket(Bucket=self.bucket, CreateBucketConfiguration={"LocationConstraint": REGION})

    def left(self, uid: str) -> dict[str, list[str]]:
        """Return all that is in the cloud of a deployment, or of its bucket."""
        volumes = self._ec2.describe_volumes(Filters=tag_filters(uid))["Volumes"]
        found = {
            "instance": [one.instance_id for one in find_instances(self._ec2, uid)],
            "group": [one["GroupId"] for one in find_groups(self._ec2, uid)],
            "volume": [one["VolumeId"] for one in volumes],
            "object": [
                one["Key"] for one in self._s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])
            ],
        }
        return {kind: names for kind, names in found.items() if names}


@contextmanager
def aws_site(
    place: Path, aws: NitroAws, roots: Roots, app_id: bytes, *, bucket: bool = True
) -> Iterator[AwsSite]:
    """Give a site that has nothing in it but an empty bucket.

    Its enclaves are of `app_id` where their image names none.
    """
    aws.reset(place / "parents")
    with SimulatedGuests(place / "guests", roots, app_id=app_id) as guests:
        site = AwsSite(place, aws, roots, guests)
        if bucket:
            site.make_bucket()
        yield site
