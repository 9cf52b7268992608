"""A development chain on loopback: anvil where npm brought it, otherwise our own small node over py-evm."""
