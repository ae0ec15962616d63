"""Scripts that print tables of docs/; they are not shipped."""
