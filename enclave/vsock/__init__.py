"""VSOCK: the transport, its stand-in, and the forwarder between enclave and parent (spec deploy 5B.5)."""
