"""`dstack-cloud gov`: who may change what the contracts allow, what changes, and the calls that change it."""
