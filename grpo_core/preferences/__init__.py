"""What people prefer: which pair to show next, how far people agree, files of preferences."""
