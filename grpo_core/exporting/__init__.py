"""Export a run: the trained model, to a folder or the Hub; a command; a script for TRL."""
