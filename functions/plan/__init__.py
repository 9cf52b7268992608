"""The plan of a deployment: what would run, under which hashes, and what the owners must allow first."""
