"""Runs on several devices and machines: Ray places the workers and restarts them."""
