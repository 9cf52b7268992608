"""The authorization webhook: asks the governance contract, and can prove what it answered."""
