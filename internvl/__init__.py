"""Training and inference of long-context vision-language models: InternVL2 with Variable Visual Position Encoding."""

import sys

from internvl.moved_names import FINDER

__version__ = "0.1.0"
sys.meta_path.append(FINDER)
