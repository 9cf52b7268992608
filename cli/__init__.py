"""The `dstack-cloud` command: a thin face over functions and shared."""
