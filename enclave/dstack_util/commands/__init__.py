"""The subcommands of `dstack-util`, one module per group (spec deploy section 6.1)."""
