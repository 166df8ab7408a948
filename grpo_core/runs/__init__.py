"""Starting, queueing, resuming, limiting and comparing training runs."""
