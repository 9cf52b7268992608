"""The verify function: evidence in, upstream's verifier response out. It decides nothing for a KMS."""
