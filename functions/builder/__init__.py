"""Building enclave images without a daemon: sources of images, a cache, the builder."""
