"""python -m grpo_core train | resume | compare | prompts | model | preflight | bench | runs | show | advise | report | export | tell | doctor: see cli/."""

import sys

from grpo_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
