"""Benchmarks: ours against a reference, in one run. `make bench`; no timing is asserted in `tests/`."""
