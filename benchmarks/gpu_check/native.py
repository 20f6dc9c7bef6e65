"""Part: our model and transformers' own InternVL with the same weights, on the same row.

Both recompute layers in the backward pass; nothing is packed, positions are ordinary. transformers runs flash-attn
where it is installed, else torch's scaled_dot_product_attention.
"""

import gc
from collections.abc import Callable, Iterator

import torch
from transformers import InternVLForConditionalGeneration
from transformers.utils import is_flash_attn_2_available

from benchmarks.gpu_check.chat_model import VISUAL, build_model, make_row
from benchmarks.gpu_check.chat_model import Row as ModelRow
from benchmarks.gpu_check.part import CheckFailed, Job, Measured, Row, measure
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.visual_features import normalize_tiles
from internvl.tools.native_config import build_native_config
from internvl.tools.native_weights import to_native_state

TOKENS, PROMPT_TOKENS = (32768, 128), (131072, 512)  # on a card, on the CPU
LARGEST_DIFFERENCE = 0.02  # of two losses in bfloat16, relative
GIB = 2**30


def build_native(ours: InternVLChatModel) -> InternVLForConditionalGeneration:
    """transformers' model with our weights; it shares those that need no cutting."""
    config = build_native_config(ours.config, image_token_id=VISUAL, tie_word_embeddings=False)
    attention = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    with ours.device:
        native = InternVLForConditionalGeneration._from_config(
            config, dtype=torch.bfloat16, attn_implementation=attention
        )
    native.load_state_dict(to_native_state(ours.state_dict(), ours.config), assign=True)
    return native


def run(job: Job) -> Iterator[Row]:
    """Two rows per kind of work; shorter ones until both models hold them."""
    ours = build_model(job)
    models = {"this project": ours, "transformers": build_native(ours)}
    for model in models.values():
        model.activation_checkpointing_enable()
    works: dict[str, tuple[int, Callable[..., torch.Tensor]]] = {
        "forward and backward": (TOKENS[job.is_tiny], train),
        "prefill": (PROMPT_TOKENS[job.is_tiny], prefill),
    }
    for name, (tokens, work) in works.items():
        while True:
            rows = list(compare(job, models, make_row(ours.config, tokens, job.device), work))
            yield from ({"work": name, **row} for row in rows)
            if all(isinstance(row["tokens/s"], float) for row in rows):
                break
            tokens //= 2
        check_agreement(name, [row["result"] for row in rows])


def compare(job: Job, models: dict, row: ModelRow, work: Callable[..., torch.Tensor]) -> Iterator[Row]:
    """A row per model: speed, and memory beside the weights."""
    for name, model in models.items():
        results: list[float] = []
        before = torch.cuda.memory_allocated(job.device) if job.device.type == "cuda" else 0
        measured = try_twice(lambda model=model, results=results: results.append(float(work(model, row))), job)
        for each in models.values():
            each.zero_grad(set_to_none=True)
        result: Row = {"model": name, "attention": name_attention(model), "tokens": row.num_tokens}
        if measured is None:
            gc.collect()
            torch.cuda.empty_cache()
            yield {**result, "tokens/s": "out of memory"}
            continue
        peak = None if measured.peak_bytes is None else (measured.peak_bytes - before) / GIB
        yield {
            **result,
            "tokens/s": row.num_tokens / measured.seconds,
            "seconds": measured.seconds,
            "peak beside weights GiB": peak,
            "result": results[-1],
        }


def try_twice(work: Callable[[], None], job: Job) -> Measured | None:
    """The second run's measurement; None if the card has not enough memory."""
    try:
        work()
        return measure(work, job.device)
    except torch.OutOfMemoryError:
        return None


def train(model: torch.nn.Module, row: ModelRow) -> torch.Tensor:
    """The loss, after its backward pass; gradients are dropped first, as a training loop does."""
    model.zero_grad(set_to_none=True)
    loss = model.train()(input_ids=row.input_ids, labels=row.labels, use_cache=False, **take_tiles(model, row)).loss
    loss.backward()
    return loss.detach()


@torch.no_grad()
def prefill(model: torch.nn.Module, row: ModelRow) -> torch.Tensor:
    """The largest logit of the last token, with a cache made on the way."""
    out = model.eval()(input_ids=row.input_ids, use_cache=True, logits_to_keep=1, **take_tiles(model, row))
    return out.logits.max()


def take_tiles(model: torch.nn.Module, row: ModelRow) -> dict:
    """Tiles as each model takes them; ordinary positions in ours."""
    if isinstance(model, InternVLChatModel):
        return {"pixel_values": row.pixel_values, "rope_pos_id_version": "default"}
    return {"pixel_values": normalize_tiles(row.pixel_values).to(torch.bfloat16)}


def name_attention(model: torch.nn.Module) -> str:
    """The kernel that computes it."""
    return "default" if isinstance(model, InternVLChatModel) else str(model.config._attn_implementation)


def check_agreement(name: str, results: list) -> None:
    """Both models compute the same, up to rounding.

    Raises:
        CheckFailed: They do not.
    """
    ours, theirs = results
    if not abs(ours - theirs) <= LARGEST_DIFFERENCE * abs(theirs):
        raise CheckFailed(f"{name}: this project's model gives {ours:.4f}, transformers' {theirs:.4f}")
