"""The policy: loading, adapters, attention over packed rows, log-probabilities, sharding."""
