"""Key derivation and secp256k1 signatures of the KMS (spec kms section 3)."""
