"""Formats, cryptography and decisions that every room imports. Pure, except for `shared.net`."""
