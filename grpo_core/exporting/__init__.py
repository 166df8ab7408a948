"""What a run leaves behind: a trained model, a command, a script for TRL, a repository on the Hub."""
