"""The bundled model: a tiny policy that solves about a third of the built-in sums.

scripts/bundled_model makes and measures it.
"""
