"""Preference data on its way to token ids: read, split, rendered, tokenized, packed; and the embedded tasks."""
