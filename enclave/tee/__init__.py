"""What a daemon asks of the guest that it runs in, whatever kind of guest that is."""
