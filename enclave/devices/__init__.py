"""The hardware that an enclave talks to: the Nitro Security Module, and the clock made from it."""
