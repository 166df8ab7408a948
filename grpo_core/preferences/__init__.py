"""What people prefer: pairs to show next, agreement, files, and reward models of it."""
