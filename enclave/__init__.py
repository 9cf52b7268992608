"""What runs inside an enclave or next to its vsock: small, trusted, and without any cloud library."""
