"""Checks before a run starts: prompts, model, rubric, and one real step on a copy of the model."""
