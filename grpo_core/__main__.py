"""`python -m grpo_core COMMAND` runs one command; see cli/ for the list."""

import sys

from grpo_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
