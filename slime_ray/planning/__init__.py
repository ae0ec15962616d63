"""What an experiment will cost, before anything is launched: from its settings, a formula and, if wanted, a probe."""
