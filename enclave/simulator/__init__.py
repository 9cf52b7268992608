"""Simulated Nitro enclaves: real formats under a throw-away root. Never part of a production image."""
