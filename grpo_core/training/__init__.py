"""One run: sample groups, score them, compare siblings, update the policy. `trainer.train` is the loop."""
