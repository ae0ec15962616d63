"""Benchmarks of the training step: its speed, its memory and its exactness, beside the recipes it is compared with."""
