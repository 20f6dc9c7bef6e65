"""Loss of a row, chunked over supervised tokens or from the logits of the whole row: peak memory and time in one run.

    python benchmarks/loss.py [--tokens 8192 --vocabulary 32768 --hidden 512 --supervised 0.1]
    python benchmarks/loss.py --tokens 32768 --vocabulary 92553 --hidden 2048 --supervised 1 --only chunked

The second command is a 32k row of InternVL2-2B; one copy of its full logits takes 12 GB, so only the chunked loss runs.
Each variant runs in its own process, which makes peak memory its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

from internvl.model.loss import shift_targets, weighted_cross_entropy


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Forward and backward of one variant: seconds and peak memory above the inputs in MiB."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, args.tokens, args.hidden, generator=generator, requires_grad=True)
    weight = torch.randn(args.vocabulary, args.hidden, generator=generator, requires_grad=True)
    labels = torch.randint(0, args.vocabulary, (1, args.tokens), generator=generator)
    labels[:, int(args.tokens * args.supervised) :] = -100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    start = time.perf_counter()
    if args.variant == "chunked":
        loss = weighted_cross_entropy(hidden, weight, *shift_targets(labels, None))
    else:
        logits = (hidden @ weight.T).float()
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    loss.backward()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    return {"seconds": seconds, "peak_mib": peak, "loss": loss.item()}


def main() -> None:
    """Run both variants and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--supervised", type=float, default=0.1, help="share of tokens that are trained on")
    parser.add_argument("--only", choices=["chunked", "plain"], help="one variant, without ratios")
    parser.add_argument("--variant", choices=["chunked", "plain"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(measure(args)))
        return
    results = {}
    for variant in ("plain", "chunked") if args.only is None else (args.only,):
        command = [sys.executable, *sys.argv, "--variant", variant]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        results[variant] = json.loads(done.stdout.splitlines()[-1])
        print(f"{variant:8} {results[variant]['seconds']:7.2f} s  {results[variant]['peak_mib']:8.0f} MiB", flush=True)
    if args.only is not None:
        return
    plain, chunked = results["plain"], results["chunked"]
    assert abs(plain["loss"] - chunked["loss"]) < 1e-4 * abs(plain["loss"])
    print(
        f"chunked / plain: time {chunked['seconds'] / plain['seconds']:.2f}, "
        f"memory {chunked['peak_mib'] / plain['peak_mib']:.2f}"
    )


if __name__ == "__main__":
    main()
