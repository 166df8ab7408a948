"""What stored rows say about a run, computed without a model."""
