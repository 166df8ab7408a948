"""What can be asked before a run starts: prompts, models, rubrics, one real step on a copy."""
