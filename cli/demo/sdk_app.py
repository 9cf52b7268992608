"""The demo's app: what a developer writes, with upstream's SDK from PyPI and nothing of ours.

It runs beside its guest's agent and reaches it as every app does. What it gets is for the app alone, but for
what it shows to whoever sent the challenge.
"""

import json
import sys
from hashlib import sha512

from dstack_sdk import DstackClient

ALGORITHM = "secp256k1"


def main() -> None:
    """Answer the challenge (hex) of the command line with a signature, evidence and a certificate."""
    challenge = bytes.fromhex(sys.argv[1])
    client = DstackClient()
    wallet = client.get_key("wallet", "demo").decode_key()
    signed = client.sign(ALGORITHM, challenge)
    evidence = client.attest(sha512(challenge + signed.decode_public_key()).digest())
    tls = client.get_tls_key(subject="demo-app", usage_ra_tls=True)
    answer = {
        "event": "app.answer",
        "app_id": client.info().app_id,
        "wallet_bytes": len(wallet),
        "public_key": signed.public_key,
        "signature": signed.signature,
        "signature_chain": signed.signature_chain[1:],
        "attestation": evidence.attestation,
        "certificate_chain": tls.certificate_chain,
    }
    sys.stdout.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
