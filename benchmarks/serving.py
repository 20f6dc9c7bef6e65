"""Serving: clients at once against one after another, errors, and the server's memory.

    python benchmarks/serving.py [--seconds 120] [--clients 8]

Starts the server on the tiny checkpoint, on one thread, and asks it with OpenAI's client: text and pictures, some
streamed. Prints requests per second alone and together, their ratio, the errors, and the server's resident memory
after the first tenth of the time and at its end.
"""

import argparse
import base64
import io
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import openai
from PIL import Image

ROOT = Path(__file__).parents[1]
_NUM_PICTURES = 16


def make_messages(number: int) -> list[dict[str, object]]:
    """A question about one of a few pictures, every other time without one."""
    text = {"type": "text", "text": f"Question {number}: tell me all about what you see, please."}
    if number % 2:
        return [{"role": "user", "content": [text]}]
    pixels = np.random.default_rng(number % _NUM_PICTURES).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
    return [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}, text]}]


def ask_for(client: openai.OpenAI, seconds: float, *, first: int, counts: dict[str, int]) -> None:
    """Ask one question after another; `counts` are those of this client alone."""
    end, number = time.monotonic() + seconds, first
    while time.monotonic() < end:
        try:
            answer = client.chat.completions.create(
                model="tiny", messages=make_messages(number), max_tokens=64, temperature=0, stream=number % 3 == 0
            )
            if number % 3 == 0:
                list(answer)
            counts["answers"] += 1
        except openai.OpenAIError as error:
            print(f"error: {error}", file=sys.stderr)
            counts["errors"] += 1
        number += 1


def measure(url: str, num_clients: int, seconds: float) -> tuple[float, int]:
    """Answers per second of all clients, and errors."""
    counts = [{"answers": 0, "errors": 0} for _ in range(num_clients)]
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        threads = [
            threading.Thread(target=ask_for, args=(client, seconds), kwargs={"first": 1000 * n, "counts": own})
            for n, own in enumerate(counts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return sum(own["answers"] for own in counts) / seconds, sum(own["errors"] for own in counts)


def read_resident_mib(pid: int) -> float:
    """Resident memory of a process."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "pretrained/InternVL2-Tiny")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--clients", type=int, default=8)
    options = parser.parse_args()
    command = [sys.executable, "-m", "internvl.serve", str(options.checkpoint), "--model_name", "tiny", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, "--device", "cpu"], env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            url = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+", line))) + "/v1"
            alone, alone_errors = measure(url, 1, options.seconds / 4)
            _, early_errors = measure(url, options.clients, options.seconds / 10)
            memory_before = read_resident_mib(server.pid)
            together, late_errors = measure(url, options.clients, options.seconds)
            memory_after = read_resident_mib(server.pid)
        finally:
            server.terminate()
    print(f"one after another: {alone:.1f} answers per second")
    print(f"{options.clients} clients at once: {together:.1f} answers per second, {together / alone:.2f} times as many")
    print(f"errors: {alone_errors + early_errors + late_errors}")
    print(f"resident memory of the server: {memory_before:.0f} MiB, after {options.seconds:g} s {memory_after:.0f} MiB")
    print(f"exit code after SIGTERM: {server.returncode}")


if __name__ == "__main__":
    main()
