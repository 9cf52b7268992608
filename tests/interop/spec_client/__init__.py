"""A client of the KMS written from its specification alone (spec kms and attestation), none of our code.

It is a second reading of the same pages: where it and our server disagree, one of them reads them wrong. What
hardware and operators give (evidence for some report data, an address, pins) is handed in from outside;
`tests/interop/test_independence.py` holds its imports to the standard library and third parties.
"""
