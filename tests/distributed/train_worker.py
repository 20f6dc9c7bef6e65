"""Runs the training entry several times in one process (imports take longer than tiny runs): argv[1] is a json list."""

import json
import sys
import traceback
from pathlib import Path

from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from internvl.parallel.launch import finish_distributed
from internvl.train.finetune import run_training

if __name__ == "__main__":
    for number, arguments in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        try:
            run_training(arguments)
        except Exception:
            sys.stderr.write(f"run {number}: {' '.join(arguments)}\n{traceback.format_exc()}")
            sys.exit(1)
        unset_hf_deepspeed_config()  # transformers keeps ZeRO-3 in a global, which the next run would load under
    finish_distributed()
