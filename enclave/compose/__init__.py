"""An app's containers, from a booted guest to running services and back (spec guest-agent section 7)."""
