"""Exports have all that transformers' AutoProcessor and pipelines need, and mean the same there as here."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, InternVLForConditionalGeneration

from internvl.data.tiling import Tiling
from internvl.data.transform import build_transform
from internvl.infer.checkpoint import load_checkpoint
from internvl.infer.settings import InferenceSettings
from internvl.model.conversation import ConversationTokenizer, get_conversation
from internvl.tools.export_native import export_checkpoint
from internvl.tools.make_tiny import TinySpec, make_checkpoint

TEXTS = [
    "Which fruit?",
    "  two  spaces\n\n\t",
    "你好 é ½ ﬁ",
    "<|im_start|>user\n<img><IMG_CONTEXT></img> a<|im_end|>",
    "",
]
LARGEST_DIFFERENCE = 2 / 255 / 0.224  # two of 255 steps: torchvision's bicubic filter rounds otherwise than Pillow's


def needs_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a torchvision of another torch raises RuntimeError
        pytest.skip(f"transformers' processors need torchvision, which cannot be imported here: {error}")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    """A tiny checkpoint with thumbnails, and its export."""
    place = tmp_path_factory.mktemp("folders")
    checkpoint, native = place / "checkpoint", place / "native"
    make_checkpoint(checkpoint, TinySpec(linear_std=0.3))
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"use_thumbnail": True, "dynamic_image_size": True, "max_dynamic_patch": 4}
    (checkpoint / "config.json").write_text(json.dumps(config))
    export_checkpoint(checkpoint, native)
    return checkpoint, native


@pytest.fixture(scope="module")
def ours(folders):
    return load_checkpoint(folders[0], InferenceSettings(device="cpu", dtype="float32"))


def make_picture(width: int, height: int) -> Image.Image:
    """Smooth colours: filters differ least there, and a wrong tile or order shows."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [255 * columns / width, 255 * rows / height, 127 * (1 + np.sin(columns / 9 + rows / 7))]
    return Image.fromarray(np.stack(channels, axis=-1).astype(np.uint8))


@pytest.mark.parametrize("text", TEXTS)
def test_the_exported_tokenizer_is_transformers_own_with_the_same_ids(folders, ours, text):
    tokenizer = AutoTokenizer.from_pretrained(folders[1], trust_remote_code=False)
    ids = ours[1](text)["input_ids"]
    assert tokenizer(text)["input_ids"] == ids
    decode = lambda tokenizer: tokenizer.decode(ids, skip_special_tokens=True)  # noqa: E731
    assert decode(tokenizer) == decode(ours[1])


def test_the_files_say_what_the_checkpoint_says(folders):
    processor = json.loads((folders[1] / "processor_config.json").read_text())
    pixels = {"do_resize": True, "do_rescale": True, "do_normalize": True, "do_convert_rgb": True, "resample": 3,
              "rescale_factor": 1 / 255, "size": {"height": 56, "width": 56}, "image_mean": [0.485, 0.456, 0.406],
              "image_std": [0.229, 0.224, 0.225]}  # fmt: skip
    image = {
        "image_processor_type": "GotOcr2ImageProcessor",
        "crop_to_patches": True,
        "min_patches": 1,
        "max_patches": 4,
    }
    video = {"video_processor_type": "InternVLVideoProcessor", "do_sample_frames": False}
    assert processor == {
        "processor_class": "InternVLProcessor",
        "image_seq_length": 4,
        "image_processor": image | pixels,
        "video_processor": video | pixels,
    }
    for name, fields in {"preprocessor": image | pixels, "video_preprocessor": video | pixels}.items():
        content = json.loads((folders[1] / f"{name}_config.json").read_text())
        assert content == fields | {"processor_class": "InternVLProcessor"}


def test_generation_ends_where_an_answer_does(folders, ours):
    ends = json.loads((folders[1] / "generation_config.json").read_text())["eos_token_id"]
    assert ends == sorted([ours[1].eos_token_id, ours[1].convert_tokens_to_ids("<|im_end|>")])


def render(processor, messages, **options):
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt", **options
    )


def encode(ours, question: str, tiles: list[int]) -> torch.Tensor:
    model, tokenizer = ours
    conversation = ConversationTokenizer(tokenizer, model.config.template)
    return conversation.join(conversation.encode_prompt(question), tiles, num_image_token=model.num_image_token)[0][
        None
    ]


SIZES = [[], [(56, 56)], [(230, 110)], [(120, 200), (60, 300)]]


@pytest.mark.parametrize("sizes", SIZES, ids=["text", "one tile", "several tiles", "two pictures"])
@torch.no_grad()
def test_pictures_and_logits_are_ours(folders, ours, sizes):
    needs_torchvision()
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folders[1])
    pictures = [make_picture(*size) for size in sizes]
    content = [*({"type": "image", "image": picture} for picture in pictures), {"type": "text", "text": "Which?"}]
    inputs = render(processor, [{"role": "user", "content": content}])
    model = ours[0]
    tiling = Tiling(1, 4, model.config.image_size, use_thumbnail=True)
    squares = [tiling.split(picture) for picture in pictures]
    ids = encode(ours, "<image>\n" * len(pictures) + "Which?", [len(tiles) for tiles in squares])
    assert torch.equal(inputs["input_ids"], ids)
    if pictures:
        transform = build_transform(model.config.image_size)
        pixels = torch.cat([transform(tiles) for tiles in squares])
        assert inputs["pixel_values"].shape == pixels.shape
        assert (inputs["pixel_values"] - pixels).abs().max() < LARGEST_DIFFERENCE
    native = InternVLForConditionalGeneration.from_pretrained(folders[1]).eval()
    logits = native(**inputs).logits
    expected = model(pixel_values=inputs.get("pixel_values"), input_ids=ids, rope_pos_id_version="default").logits
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_frames_of_a_video_are_ours(folders, ours):
    needs_torchvision()
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folders[1])
    frames = np.stack([np.asarray(make_picture(90, 60))] * 3)
    prompt = get_conversation("internlm2-chat").render([("user", "<video>\nWhich?"), ("assistant", None)])
    inputs = processor(text=[prompt], videos=[frames], return_tensors="pt")
    question = "Frame1: <image>\nFrame2: <image>\nFrame3: <image>\nWhich?"
    assert torch.equal(inputs["input_ids"], encode(ours, question, [1, 1, 1]))
    assert inputs["pixel_values"].shape == (3, 3, 56, 56)


def test_the_pipeline_answers_as_chat_does(folders, ours):
    needs_torchvision()
    from transformers import pipeline

    picture = make_picture(230, 110)
    content = [{"type": "image", "image": picture}, {"type": "text", "text": "Which?"}]
    answer = pipeline("image-text-to-text", model=str(folders[1]), device="cpu")(
        text=[{"role": "user", "content": content}], max_new_tokens=6, do_sample=False, return_full_text=False
    )
    model, tokenizer = ours
    tiles = build_transform(56)(Tiling(1, 4, 56, use_thumbnail=True).split(picture))
    expected = model.chat(
        tokenizer, tiles, "Which?", {"max_new_tokens": 6, "do_sample": False}, rope_pos_id_version="default"
    )
    assert answer[0]["generated_text"].strip() == expected
