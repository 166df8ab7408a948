"""One module a tab, and the parts of tabs."""
