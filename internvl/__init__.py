"""Training and inference of long-context vision-language models: InternVL2 with Variable Visual Position Encoding."""

import sys

from internvl.command import announce_interrupts
from internvl.moved_names import FINDER

__version__ = "0.1.0"

sys.meta_path.append(FINDER)
# `python -m` is looking for a command of this package, and importing what the command needs takes seconds.
if sys.argv[:1] == ["-m"]:
    announce_interrupts()
