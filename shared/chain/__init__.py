"""Chain state without trusting who relays it: RLP, headers, tries, slots, ABI and the re-decision."""
