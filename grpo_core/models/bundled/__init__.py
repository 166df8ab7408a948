"""The bundled model: a tiny policy that half knows the built-in tasks, and the scripts that make and measure it."""
