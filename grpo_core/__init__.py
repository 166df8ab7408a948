"""GRPO Studio's core: everything but the page. See README.md for the map."""

__version__ = "0.1.0"
