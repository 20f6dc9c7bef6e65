"""One part in this process: its rows go to a file as they come, and last how it ended.

python -m benchmarks.gpu_check.run_part PART FILE SECONDS
"""

import json
import sys
import time
import traceback
from importlib import import_module

import torch

from benchmarks.gpu_check.part import CheckFailed, Job, Skipped


def main() -> None:
    """Run the part; whatever it raises is its result."""
    name, path, seconds = sys.argv[1:]
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    with open(path, "w", buffering=1) as file:
        try:
            part = import_module(f"benchmarks.gpu_check.{name}")
            for row in part.run(Job(device, time.monotonic() + float(seconds))):
                file.write(json.dumps({"row": row}) + "\n")
                cells = (f"{key} {_show(value)}" for key, value in row.items() if value is not None)
                print("   ", ", ".join(cells), flush=True)
            end = {"state": "done"}
        except Skipped as reason:
            end = {"state": "skipped", "reason": str(reason)}
        except CheckFailed as reason:
            end = {"state": "failed", "reason": str(reason)}
        except Exception as error:
            traceback.print_exc()
            end = {"state": "failed", "reason": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"}
        file.write(json.dumps(end) + "\n")


def _show(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
