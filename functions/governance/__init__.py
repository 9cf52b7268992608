"""Reacts to the contracts' events: a webhook is a hint, the chain's state is the fact (DESIGN section 4)."""
