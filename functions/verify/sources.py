"""Where a verifier outside a TEE gets endorsements: the vendors' services over this machine's own network."""

from shared.attestation.endorsements import Endorsements
from shared.net.dialer import DirectDialer
from shared.net.endorsement_source import EndorsementSource
from shared.net.fetch import HttpClient
