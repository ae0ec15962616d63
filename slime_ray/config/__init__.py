"""One YAML, read and checked, as an experiment."""
