"""Packing policies on a Long-VQA-like mixture of lengths: how full rows are, and how equal their work is.

    python benchmarks/packing.py [--documents 40000 --ranks 8 --max_tokens 131072 --plot packing.png]

Every rank packs its own documents, as in training; a step is one row of every rank. Imbalance is the work of a step's
most expensive row divided by the mean over its rows, minus one: the share of time that the average rank waits. Work is
that of `RowCost` with the true length of every document. Lengths are drawn from long_vqa_lengths.json.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np

from internvl.data.packing import POLICIES, PackingLimits, RowCost

MIX = Path(__file__).with_name("long_vqa_lengths.json")


def draw_documents(number: int, seed: int) -> np.ndarray:
    """(documents, 2) int64: tokens and tiles."""
    mix = json.loads(MIX.read_text())
    rng = np.random.default_rng(seed)
    sources = mix["sources"]
    which = rng.choice(len(sources), size=number, p=[source["share"] for source in sources])
    low, high = np.array([source["tokens"] for source in sources], dtype=float)[which].T
    tokens = np.exp(rng.uniform(np.log(low), np.log(high))).astype(np.int64)
    visual = np.array([source["visual"] for source in sources])[which]
    return np.stack([tokens, (tokens * visual / mix["tokens_per_tile"]).astype(np.int64)], axis=1)


def pack(documents: np.ndarray, policy: str, limits: PackingLimits) -> list[list[int]]:
    """Rows of document numbers, in the order in which they leave."""
    builder = POLICIES[policy](limits)
    rows = []
    for number, (tokens, tiles) in enumerate(documents.tolist()):
        rows += builder.add(number, num_tokens=tokens, num_tiles=tiles)
    return [row.refs for row in rows]  # what is still open would be joined by the documents to come


def measure(documents: np.ndarray, ranks: int, policy: str, limits: PackingLimits) -> dict[str, float | np.ndarray]:
    """Fill, imbalance and time of a policy."""
    work = RowCost().measure(documents[:, 0], documents[:, 1])
    start = time.perf_counter()
    dealt = [np.arange(rank, len(documents), ranks) for rank in range(ranks)]
    packed = [[share[row] for row in pack(documents[share], policy, limits)] for share in dealt]
    seconds = time.perf_counter() - start
    steps = min(map(len, packed))
    costs = np.array([[work[row].sum() for row in rows[:steps]] for rows in packed])  # (ranks, steps)
    fills = np.array([documents[row, 0].sum() / limits.max_tokens for rows in packed for row in rows])
    return {
        "fill": fills,
        "imbalance": costs.max(axis=0) / costs.mean(axis=0) - 1,
        "rows": len(fills),
        "us_per_document": seconds / len(documents) * 1e6,
    }


def plot(results: dict[str, dict[str, float | np.ndarray]], path: Path) -> None:
    """Histograms of fill and imbalance."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6))
    for name, result in results.items():
        left.hist(100 * result["fill"], bins=np.linspace(70, 100, 61), histtype="step", linewidth=1.8, label=name)
        right.hist(100 * result["imbalance"], bins=np.linspace(0, 40, 61), histtype="step", linewidth=1.8, label=name)
    left.set(xlabel="tokens of a row, % of max_packed_tokens", ylabel="rows", yscale="log")
    right.set(xlabel="work of a step's largest row over the mean, %", ylabel="steps")
    left.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure all policies and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=40_000)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--max_tokens", type=int, default=131_072)
    parser.add_argument("--max_tiles", type=int, default=None, help="default: what max_tokens can hold")
    parser.add_argument("--max_open_rows", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", type=Path, default=None)
    args = parser.parse_args()
    limits = PackingLimits(args.max_tokens, args.max_tiles or args.max_tokens // 256, args.max_open_rows)
    documents = draw_documents(args.documents, args.seed)
    results = {policy: measure(documents, args.ranks, policy, limits) for policy in POLICIES}
    print(f"{args.documents} documents of {documents[:, 0].mean():.0f} tokens on average, {args.ranks} ranks, {limits}")
    print("| policy | rows | mean fill | 1 row in 100 below | mean imbalance | 1 step in 100 above | us/document |")
    print("|---|---|---|---|---|---|---|")
    for name, result in results.items():
        fill, imbalance = np.asarray(result["fill"]), np.asarray(result["imbalance"])
        print(
            f"| {name} | {result['rows']} | {fill.mean():.2%} | {np.quantile(fill, 0.01):.2%} | {imbalance.mean():.2%} "
            f"| {np.quantile(imbalance, 0.99):.2%} | {result['us_per_document']:.0f} |"
        )
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
