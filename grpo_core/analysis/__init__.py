"""Results computed from stored rows, without running a model."""
