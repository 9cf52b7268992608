"""How the functions are deployed on Google Cloud: settings, size, and what their service accounts may do."""

from typing import Final

import msgspec


class Setting(msgspec.Struct, frozen=True):
    """A variable of a function's environment, taken from that of `deploy.sh`.

    `default` may name other variables, as in `firestore:$PROJECT/dstack`; None makes the variable required.
    """

    name: str
    what: str
    default: str | None = None


class GcpService(msgspec.Struct, frozen=True, kw_only=True):
    """One function as it is deployed. `target` is what functions-framework serves of `main.py`.

    A `public` one is called without a Google identity. `roles` and `permissions` are of its service account,
    in the project. `inputs` are variables of the script alone, which settings may name. `secrets` are
    settings whose value is a secret of Secret Manager: the variable with `_SECRET` behind it names it.
    `before` and `after` are shell commands: of `setup.sh`, behind the accounts, and of `deploy.sh`, behind
    the deployment.
    """

    name: str
    target: str
    public: bool
    memory: str
    seconds: int
    concurrency: int
    instances: int
    inputs: tuple[Setting, ...] = ()
    settings: tuple[Setting, ...] = ()
    secrets: tuple[Setting, ...] = ()
    roles: tuple[str, ...] = ()
    permissions: tuple[str, ...] = ()
    before: str = ""
    after: str = ""


REGION: Final = Setting("REGION", "its region, for instance europe-west4")

_PCCS: Final = Setting(
    "DSTACK_VERIFIER_ATTESTATION__URLS__PCCS", "URL of a PCCS, that of Intel where empty", ""
)

VERIFY: Final = GcpService(
    name="dstack-verify",
    target="verify",
    public=True,
    memory="512Mi",
    seconds=300,
    concurrency=8,
    instances=10,
    settings=(_PCCS,),
)

AUTHORIZE: Final = GcpService(
    name="dstack-authorize",
    target="authorize",
    public=True,
    memory="512Mi",
    seconds=30,
    concurrency=16,
    instances=10,
    settings=(
        Setting("KMS_CONTRACT_ADDR", "address of the DstackKms contract, in hex"),
        Setting("ETH_CHAIN_ID", "id of the chain; an endpoint that serves another is refused"),
        Setting("ETH_RPC_QUORUM", "how many endpoints must answer, a majority where empty", ""),
        Setting("ETH_MAX_HEAD_AGE", "seconds; an older block does not count", "120"),
        Setting("AUTHORIZE_POLICY_FILE", "a file of the source with what decisions want besides", ""),
    ),
    secrets=(
        Setting(
            "ETH_RPC_URL",
            "name of the secret with URLs of JSON-RPC endpoints of the chain, with spaces between them",
        ),
    ),
)

_DEPLOY_INPUTS: Final = (
    Setting("BUCKET", "name of the bucket for images and uploaded files"),
    Setting(
        "WORKER_URL",
        "what the queue calls",
        "https://$REGION-$PROJECT.cloudfunctions.net/dstack-deploy-worker/internal/advance",
    ),
    Setting("TASKS_ACCOUNT", "as whom the queue calls", "dstack-tasks@$PROJECT.iam.gserviceaccount.com"),
)
_DEPLOY_SETTINGS: Final = (
    Setting("DSTACK_STORE", "where records are kept", "firestore:$PROJECT/dstack"),
    Setting("DSTACK_BLOBS", "where files are kept", "gcs:$BUCKET"),
    Setting("DSTACK_CLOUDS", "the clouds that apps may be deployed to", "gcp-tdx"),
    Setting(
        "DSTACK_QUEUE",
        "the queue, what it calls and as whom",
        "tasks:projects/$PROJECT/locations/$REGION/queues/dstack|$WORKER_URL|$TASKS_ACCOUNT",
    ),
    Setting("DSTACK_GRANTS", "who may do what: JSON text, or where it is", "gcs:$BUCKET/grants.json"),
    Setting("DSTACK_CONFIG", "defaults for projects, as JSON text", ""),
    Setting("DSTACK_SERVICE_ACCOUNTS", "accounts that projects may give to machines, with commas", ""),
    Setting(
        "DSTACK_KMS_CONTRACT", "address of the DstackKms contract in hex, with DSTACK_RPC_URL_SECRET", ""
    ),
    Setting("DSTACK_CHAIN_ID", "id of the chain of that contract", ""),
    Setting("DSTACK_RPC_QUORUM", "how many of the chain's endpoints must agree, a majority where empty", ""),
    _PCCS,
)
_RPC_URL: Final = Setting(
    "DSTACK_RPC_URL",
    "name of the secret with URLs of JSON-RPC endpoints of the chain, with spaces between them",
    "",
)

_LOOK: Final = (
    "compute.globalOperations.get",
    "compute.instances.get",
    "compute.instances.getSerialPortOutput",
    "compute.projects.get",
    "compute.zoneOperations.get",
)
_FIREWALL: Final = (
    "compute.firewalls.create",
    "compute.firewalls.delete",
    "compute.firewalls.get",
    "compute.firewalls.list",
    "compute.firewalls.update",
    "compute.instances.setTags",
    "compute.networks.updatePolicy",
)
_LAUNCH: Final = (
    "compute.disks.create",
    "compute.disks.delete",
    "compute.disks.get",
    "compute.disks.list",
    "compute.disks.resize",
    "compute.disks.setLabels",
    "compute.disks.use",
    "compute.images.create",
    "compute.images.delete",
    "compute.images.get",
    "compute.images.list",
    "compute.images.setLabels",
    "compute.images.useReadOnly",
    "compute.instances.create",
    "compute.instances.delete",
    "compute.instances.list",
    "compute.instances.setLabels",
    "compute.instances.setServiceAccount",
    "compute.instances.start",
    "compute.instances.stop",
    "compute.machineTypes.get",
    "compute.regions.get",
    "compute.subnetworks.use",
    "compute.subnetworks.useExternalIp",
    "compute.zones.get",
)

# What both services share is made by the worker's part, which comes first. Everything is looked for before it
# is made, so that the script may run again.
_SHARED: Final = """
: "${REGION:?its region, for instance europe-west4}"
: "${BUCKET:?name of the bucket for images and uploaded files}"
gcloud firestore databases describe --database=dstack --project="$PROJECT" >/dev/null 2>&1 ||
  gcloud firestore databases create --database=dstack --project="$PROJECT" --location="$REGION" \\
    --type=firestore-native --enable-pitr --delete-protection
gcloud storage buckets describe "gs://$BUCKET" >/dev/null 2>&1 ||
  gcloud storage buckets create "gs://$BUCKET" --project="$PROJECT" --location="$REGION" \\
    --uniform-bucket-level-access --public-access-prevention
gcloud tasks queues describe dstack --project="$PROJECT" --location="$REGION" >/dev/null 2>&1 ||
  gcloud tasks queues create dstack --project="$PROJECT" --location="$REGION" \\
    --max-attempts=20 --min-backoff=5s --max-backoff=300s --max-concurrent-dispatches=20
gcloud iam service-accounts describe "dstack-tasks@$PROJECT.iam.gserviceaccount.com" \\
  --project="$PROJECT" >/dev/null 2>&1 ||
  gcloud iam service-accounts create dstack-tasks --project="$PROJECT"
"""

# An account may write to the bucket and the queue, and have the queue call in its own account's name.
_USES_SHARED: Final = """
for role in roles/storage.objectUser roles/storage.legacyBucketReader; do
  gcloud storage buckets add-iam-policy-binding "gs://$BUCKET" --member="$MEMBER" --role="$role" >/dev/null
done
for role in roles/cloudtasks.enqueuer roles/cloudtasks.viewer; do
  gcloud tasks queues add-iam-policy-binding dstack --project="$PROJECT" --location="$REGION" \\
    --member="$MEMBER" --role="$role" >/dev/null
done
gcloud iam service-accounts add-iam-policy-binding "dstack-tasks@$PROJECT.iam.gserviceaccount.com" \\
  --project="$PROJECT" --member="$MEMBER" --role=roles/iam.serviceAccountUser >/dev/null
"""

# A machine's service account is given by who may act as it; without this no machine has one.
_GIVES_ACCOUNTS: Final = """
for account in $(tr , ' ' <<<"${DSTACK_SERVICE_ACCOUNTS:-}"); do
  gcloud iam service-accounts add-iam-policy-binding "$account" --project="$PROJECT" \\
    --member="$MEMBER" --role=roles/iam.serviceAccountUser >/dev/null
done
"""

_SWEEP: Final = """
sweep=create
if gcloud scheduler jobs describe dstack-sweep --project="$PROJECT" --location="$REGION" >/dev/null 2>&1; then
  sweep=update
fi
gcloud scheduler jobs "$sweep" http dstack-sweep --project="$PROJECT" --location="$REGION" \\
  --schedule="*/5 * * * *" --http-method=POST --uri="${WORKER_URL%/advance}/sweep" \\
  --oidc-service-account-email="$TASKS_ACCOUNT" --oidc-token-audience="$WORKER_URL"
"""

# Both are public to Google: whoever calls shows a token, of their CI or of the queue, and the function itself
# verifies it. Cloud Run would take the signature off a token that it checked, and leave nothing to verify.
DEPLOY_WORKER: Final = GcpService(
    name="dstack-deploy-worker",
    target="deploy",
    public=True,
    memory="4Gi",  # of which a step's files take a part: /tmp is memory
    seconds=1800,
    concurrency=1,
    instances=20,
    inputs=_DEPLOY_INPUTS,
    settings=_DEPLOY_SETTINGS,
    secrets=(_RPC_URL,),
    roles=("roles/datastore.user",),
    permissions=(*_LOOK, *_FIREWALL, *_LAUNCH),
    before=_SHARED + _USES_SHARED + _GIVES_ACCOUNTS,
    after=_SWEEP,
)

DEPLOY: Final = GcpService(
    name="dstack-deploy",
    target="deploy",
    public=True,
    memory="1Gi",
    seconds=60,
    concurrency=8,
    instances=5,
    inputs=_DEPLOY_INPUTS,
    settings=_DEPLOY_SETTINGS,
    roles=("roles/datastore.user",),
    permissions=(*_LOOK, *_FIREWALL),
    before=_USES_SHARED,
)

# The queue holds looks. The function itself bounds its tries: it buries a look that fails too often.
_GOVERNANCE_SETUP: Final = """
: "${REGION:?its region, for instance europe-west4}"
: "${DSTACK_WEBHOOK_SECRETS:?what signs webhooks, as PROVIDER=gcp:projects/P/secrets/S}"
gcloud tasks queues describe dstack-governance --project="$PROJECT" --location="$REGION" >/dev/null 2>&1 ||
  gcloud tasks queues create dstack-governance --project="$PROJECT" --location="$REGION" \\
    --max-attempts=60 --min-backoff=5s --max-backoff=60s --max-concurrent-dispatches=5
for queue in dstack dstack-governance; do
  for role in roles/cloudtasks.enqueuer roles/cloudtasks.viewer; do
    gcloud tasks queues add-iam-policy-binding "$queue" --project="$PROJECT" --location="$REGION" \\
      --member="$MEMBER" --role="$role" >/dev/null
  done
done
gcloud iam service-accounts add-iam-policy-binding "dstack-tasks@$PROJECT.iam.gserviceaccount.com" \\
  --project="$PROJECT" --member="$MEMBER" --role=roles/iam.serviceAccountUser >/dev/null
for entry in $DSTACK_WEBHOOK_SECRETS; do
  gcloud secrets add-iam-policy-binding "${entry##*/}" --project="$PROJECT" --member="$MEMBER" \\
    --role=roles/secretmanager.secretAccessor >/dev/null
done
gcloud firestore fields ttls update expires --collection-group=governance --database=dstack \\
  --project="$PROJECT" --enable-ttl --async >/dev/null
"""

_GOVERNANCE_SWEEP: Final = """
sweep=create
if gcloud scheduler jobs describe dstack-governance-sweep --project="$PROJECT" \\
  --location="$REGION" >/dev/null 2>&1; then
  sweep=update
fi
gcloud scheduler jobs "$sweep" http dstack-governance-sweep --project="$PROJECT" --location="$REGION" \\
  --schedule="* * * * *" --http-method=POST --uri="${LOOK_URL%/look}/sweep" \\
  --oidc-service-account-email="$TASKS_ACCOUNT" --oidc-token-audience="$LOOK_URL"
"""

GOVERNANCE: Final = GcpService(
    name="dstack-governance",
    target="governance",
    public=True,  # a provider shows a signature, the queue a token; the function verifies both
    memory="512Mi",
    seconds=60,
    concurrency=8,
    instances=5,
    inputs=(
        *_DEPLOY_INPUTS[1:],
        Setting(
            "LOOK_URL",
            "what the queue of looks calls",
            "https://$REGION-$PROJECT.cloudfunctions.net/dstack-governance/internal/look",
        ),
    ),
    settings=(
        Setting("DSTACK_STORE", "where the deployments' records are kept", "firestore:$PROJECT/dstack"),
        Setting(
            "DSTACK_QUEUE",
            "the deployments' queue, what it calls and as whom",
            "tasks:projects/$PROJECT/locations/$REGION/queues/dstack|$WORKER_URL|$TASKS_ACCOUNT",
        ),
        Setting("DSTACK_GOVERNANCE_STATE", "where it remembers what it saw", "firestore:$PROJECT/dstack"),
        Setting(
            "DSTACK_GOVERNANCE_QUEUE",
            "the queue of looks, what it calls and as whom",
            "tasks:projects/$PROJECT/locations/$REGION/queues/dstack-governance|$LOOK_URL|$TASKS_ACCOUNT",
        ),
        Setting("DSTACK_KMS_CONTRACT", "address of the DstackKms contract, in hex"),
        Setting("DSTACK_CHAIN_ID", "id of the chain; an endpoint that serves another does not count"),
        Setting("DSTACK_WEBHOOK_SECRETS", "what signs webhooks, as PROVIDER=gcp:projects/P/secrets/S"),
        Setting("DSTACK_GOVERNANCE_QUORUM", "how many endpoints must agree, a majority where empty", ""),
        Setting("DSTACK_GOVERNANCE_NOTIFY_URL", "https URL that is told what operators should know", ""),
    ),
    secrets=(
        Setting(
            "DSTACK_GOVERNANCE_RPC_URLS",
            "name of the secret with the URLs of two or more JSON-RPC endpoints, with spaces",
        ),
    ),
    roles=("roles/datastore.user",),
    before=_GOVERNANCE_SETUP,
    after=_GOVERNANCE_SWEEP,
)
