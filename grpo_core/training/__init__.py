"""One run: sample, score, compare, update. `trainer.train` is the loop."""
