"""The first program of a Nitro app's enclave: from an empty kernel to a running app with its keys."""
