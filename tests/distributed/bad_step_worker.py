"""Runs the training entry several times in one process: argv[1] is a json list of lists of flags.

A run that stops at a bad step leaves the error of every rank in its folder as stopped-RANK.txt; the next one starts.
"""

import json
import os
import sys
import traceback
from pathlib import Path

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from internvl.parallel.launch import finish_distributed
from internvl.train.bad_steps import NonFiniteStep
from internvl.train.finetune import run_training

if __name__ == "__main__":
    for number, arguments in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        try:
            run_training(arguments)
        except NonFiniteStep as error:
            folder = Path(arguments[arguments.index("--output_dir") + 1])
            (folder / f"stopped-{os.environ.get('RANK', '0')}.txt").write_text(str(error))
        except Exception:
            sys.stderr.write(f"run {number}: {' '.join(arguments)}\n{traceback.format_exc()}")
            sys.exit(1)
        unset_hf_deepspeed_config()  # transformers keeps ZeRO-3 in a global, which the next run would load under
    finish_distributed()
