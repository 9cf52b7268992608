"""Which OS image booted: measurement documents, vm_config, and both held against quoted registers."""
