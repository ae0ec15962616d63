"""Recipes and model families, as YAML."""
