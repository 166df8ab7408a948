"""Makes the bundled model and measures it: `python -m scripts.bundled_model.make`."""
