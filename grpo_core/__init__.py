"""GRPO Studio's core: everything but the page. See README.md for the map."""

import os

__version__ = "0.1.0"

# The trainer shares its cores with a web server and often a browser. OpenMP threads that spin while they wait make it several
# times slower the moment somebody else wants a core (docs/runs.md); it reads this once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
