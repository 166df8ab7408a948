"""Graders that run code which is not ours: child processes with limits."""
