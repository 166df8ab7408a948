"""Gradio components of our own, with their scripts and the style sheet."""
