"""A run's folder: its results, its state, and the store that it lies in."""
