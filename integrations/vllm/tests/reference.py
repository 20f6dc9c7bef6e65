"""What this project's own model says: checkpoints, exports, requests, and log-probabilities of every token.

    python integrations/vllm/tests/reference.py OUT        (with the project's environment)

vLLM needs another version of transformers, so numbers travel in files: `OUT/requests.json`, pictures beside it, and per
decoder a checkpoint and its exports. Log-probabilities belong to token 1, 2, ... of prompt and greedy answer.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from internvl.data.video import VideoClip
from internvl.infer.checkpoint import load_checkpoint
from internvl.infer.question import Question
from internvl.infer.session import Session
from internvl.infer.settings import InferenceSettings
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.conversation import get_conversation
from internvl.model.modeling_internvl_chat import InternVLChatModel
from internvl.model.registration import load_tokenizer
from internvl.model.v2pe import next_position
from internvl.tools.export_vllm import export_checkpoint

ROOT = Path(__file__).parents[3]
TINY = ROOT / "pretrained" / "InternVL2-Tiny"
NUM_NEW_TOKENS = 6
MAX_MODEL_LEN = 512
NUM_FRAMES = 5
SIZES = {"wide": (224, 112), "square": (168, 168), "small": (56, 56), "tall": (56, 168)}  # 8, 9, 1 and 3 tiles
# Decoders beside the checkpoint's own, with random weights; between them all that the rotary embedding has to take.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
DECODERS: dict[str, dict[str, Any]] = {
    "internlm2": {},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "rope_parameters": YARN, "scale_v2pe": True},
    "llama": {"architectures": ["LlamaForCausalLM"], "rope_parameters": LLAMA3},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "head_dim": 64},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.75},
}


@dataclass(frozen=True)
class Request:
    """A question at one stride."""

    name: str
    stride: float
    images: tuple[str, ...] = ()  # names of SIZES
    has_video: bool = False
    history: tuple[tuple[str, str], ...] = ()


REQUESTS = [
    Request("text", 1),
    *(Request("one picture", stride, ("wide",)) for stride in (1 / 16, 1, 3, 4)),
    *(Request("three pictures", stride, ("small", "square", "tall")) for stride in (1 / 16, 1, 3, 4)),
    Request("two turns, two pictures", 1, ("tall", "wide"), history=(("<image>\nWhat is it?", "A cat."),)),
    Request("video", 1 / 16, has_video=True),
    Request("video and picture", 1, ("tall",), has_video=True),
]


def make_pictures(out: Path) -> None:
    """Pictures of noise, and a video as a folder of frames."""
    generator = np.random.default_rng(0)
    (out / "video").mkdir(parents=True)
    sizes = {**SIZES, **{f"video/{number}": (80, 60) for number in range(NUM_FRAMES)}}
    for name, (width, height) in sizes.items():
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(out / f"{name}.png")


def make_checkpoint(out: Path, decoder: Mapping[str, Any]) -> Path:
    """The tiny checkpoint, or one with another decoder and random weights."""
    if not decoder:
        return TINY
    fields = json.loads((TINY / "config.json").read_text())
    own = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    llm = {name: fields["llm_config"][name] for name in (*own, "bos_token_id", "eos_token_id", "pad_token_id")}
    llm |= {"num_key_value_heads": 1, "max_position_embeddings": 2048, "initializer_range": 0.1, **decoder}
    torch.manual_seed(0)
    model = InternVLChatModel(InternVLChatConfig(**{**fields, "llm_config": llm}))
    model.save_pretrained(out)
    load_tokenizer(TINY).save_pretrained(out)
    return out


def to_prompt(request: Request, template: str) -> str:
    """The prompt as vLLM takes it, and the plug-in wants it."""
    messages = [turn for pair in request.history for turn in zip(("user", "assistant"), pair, strict=True)]
    text = get_conversation(template).render([*messages, ("user", write_question(request)), ("assistant", None)])
    return text.replace("<image>", "<img><IMG_CONTEXT></img>").replace("<video>", "Frame1: <img></img>")


def write_question(request: Request) -> str:
    """Pictures first, those of the history excepted, as most people ask."""
    num_images = len(request.images) - len(request.history)
    return "<video>\n" * request.has_video + "<image>\n" * num_images + "Which digit is it?"


@torch.inference_mode()
def compute_reference(session: Session, request: Request, pictures: Path) -> dict[str, Any]:
    """Ids of prompt and greedy answer, and their log-probabilities at its stride and at ordinary positions."""
    question = Question(
        write_question(request),
        images=[str(pictures / f"{name}.png") for name in request.images],
        videos=[VideoClip(str(pictures / "video"), frames=tuple(range(NUM_FRAMES)))] if request.has_video else [],
        history=request.history,
    )
    encoded, model = session.questions.encode(question), session.model
    num_prompt_tokens = encoded.length
    ids, positions = encoded.input_ids, encoded.position_ids

    def forward(ids: Tensor, position_ids: Tensor) -> Tensor:
        output = model(input_ids=ids, position_ids=position_ids, visual_features=encoded.features)
        return output.logits[0].float().log_softmax(-1)

    for _ in range(NUM_NEW_TOKENS):
        ids = torch.cat([ids, forward(ids, positions)[-1:].argmax(-1, keepdim=True)], dim=1)
        positions = torch.cat([positions, next_position(positions[:, -1:])], dim=1)
    plain = torch.arange(ids.shape[1]).unsqueeze(0)
    return {
        **asdict(request),
        "prompt": to_prompt(request, model.config.template),
        "num_prompt_tokens": num_prompt_tokens,
        "ids": ids[0].tolist(),
        "logprobs": read_logprobs(forward(ids, positions), ids),
        "plain_logprobs": read_logprobs(forward(ids, plain), ids),
    }


def read_logprobs(logprobs: Tensor, ids: Tensor) -> list[float]:
    """Those of the tokens that are there."""
    return logprobs[:-1].gather(1, ids[0, 1:, None]).flatten().tolist()


def main(out: Path) -> None:
    """Write everything."""
    make_pictures(out / "pictures")
    found = {}
    for name, decoder in DECODERS.items():
        checkpoint = make_checkpoint(out / name / "checkpoint", decoder)
        for stride in (1, 1 / 16) if name == "internlm2" else (1,):  # others come with the requests
            settings = InferenceSettings(rope_pos_id_stride=stride)
            export_checkpoint(
                checkpoint, out / name / f"stride_{stride:g}", settings=settings, max_model_len=MAX_MODEL_LEN
            )
        model, tokenizer = load_checkpoint(checkpoint, InferenceSettings(device="cpu", dtype="float32"))
        found[name] = [
            compute_reference(Session(model, tokenizer, rope_pos_id_stride=request.stride), request, out / "pictures")
            for request in REQUESTS
        ]
    export_checkpoint(TINY, out / "internlm2" / "default", settings=InferenceSettings(rope_pos_id_version="default"))
    (out / "requests.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
