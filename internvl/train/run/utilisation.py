"""Model FLOPs utilisation (MFU): FLOPs that the mathematics of a step needs, over those that the devices could do.

    MFU = FLOPs / (seconds * processes * peak)

FLOPs are those of `internvl.plan.cost.count_model_flops`: matrices of ViT, projector, decoder and output layer,
and attention by document (n (n + 1) / 2 pairs each, not the square of the row); forward, and those gradients that are
used (all trained: three times the forward pass). Neither recomputation nor LoRA adapters are counted.
"""

from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.plan.cards import find_card
from internvl.plan.cost import RowContent, count_model_flops
from internvl.plan.sizes import Trained, extract_sizes
from internvl.train.arguments import ModelArguments, take_flags
from internvl.train.run.counts import Counts


def find_peak_tflops(device_name: str) -> float | None:
    """Dense bfloat16 TFLOP/s of a device by the name that its driver gives it; None when it is not in the table."""
    card = find_card(device_name)
    return card.peak.matmul_tflops if card else None


class Workload:
    """Counts the FLOPs that rows need, and compares them with a device's peak where that is known."""

    def __init__(self, config: InternVLChatConfig, args: ModelArguments, *, peak_tflops: float | None = None):
        self.sizes = extract_sizes("model", config)
        self.trained = take_flags(Trained, args)
        self.peak_tflops = peak_tflops

    def count_flops(self, counts: Counts) -> float:
        """FLOPs of the rows that were counted, of all processes together."""
        row = RowContent(counts["tokens"], counts["pairs"], counts["targets"], counts["tiles"])
        return sum(count_model_flops(self.sizes, self.trained, row).values())

    def describe(self, counts: Counts, *, elapsed_s: float, num_processes: int) -> dict[str, float]:
        """`tflops_per_process`, and `mfu` where the peak is known."""
        tflops = self.count_flops(counts) / elapsed_s / num_processes / 1e12
        described = {"tflops_per_process": tflops}
        if self.peak_tflops is not None:
            described["mfu"] = tflops / self.peak_tflops
        return described
