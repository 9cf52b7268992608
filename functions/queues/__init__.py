"""Queues that call `advance` again: each one a `functions.deploy.store.Schedule`."""
