"""Damaged checkpoint folders: a model that answers, or one line of ours; in time, with little memory, and nothing else.

Three folders, as a model may be stored: with a sentencepiece tokenizer and one weight file, with a fast tokenizer and
shards, with a slow tokenizer and pickled weights.
"""

import json
import os
import random
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from internvl.errors import CheckpointError, ConfigError
from internvl.infer.checkpoint import check_checkpoint, fingerprint_checkpoint, load_checkpoint
from internvl.infer.settings import InferenceSettings
from internvl.model.modeling_internvl_chat import InternVLChatModel
from tests.fuzz.mutations import list_damaged, time_limit
from tests.model.qwen_folder import make_qwen_checkpoint, split_tokenizer
from tests.train.tiny_run import make_checkpoint

LONGEST_S = 20  # most take a tenth of a second
MOST_BYTES = 2**30  # beyond what the process has when a folder is opened
VALUES = [None, True, False, -1, 0, 1, 3, 2**31, 10**30, 0.5, -0.5, 1e300, float("nan"), float("inf"), "", "x", "1",
          "../x", "\ud800", "\0", [], [1], [None], {}, {"a": 1}, {"type": "yarn"}, [[[]]], "x" * 10_000]  # fmt: skip
OTHER_NAMES = ["", "x", "auto_map", "quantization_config", "dtype", "torch_dtype", "architectures", "model_type",
               "tokenizer_class", "rope_scaling", "weight_map", "\ud800", "../x", "_attn_implementation"]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> list[Path]:
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("folders")
    sentencepiece, fast, slow = place / "sentencepiece", place / "fast", place / "slow"
    make_checkpoint(sentencepiece)
    make_qwen_checkpoint(fast)
    shutil.copytree(fast, slow)
    split_tokenizer(slow)
    torch.save(InternVLChatModel.from_pretrained(fast).state_dict(), slow / "pytorch_model.bin")
    for path in slow.glob("model*safetensors*"):
        path.unlink()
    (sentencepiece / "preprocessor_config.json").write_text('{"crop_size": 28, "image_mean": [0.5, 0.5, 0.5]}')
    for folder in (sentencepiece, fast, slow):
        for path in [*folder.glob("*.py"), *folder.glob("*.vocab")]:
            path.unlink()
    return [sentencepiece, fast, slow]


def change_value(content: bytes, rng: random.Random) -> bytes:
    """Another value or another name somewhere in a JSON object."""
    fields = place = json.loads(content)
    while True:
        key = rng.choice([*place] if isinstance(place, dict) else range(len(place)))
        if not isinstance(place[key], dict | list) or not place[key] or rng.random() < 0.2:
            break
        place = place[key]
    if isinstance(place, dict) and rng.random() < 0.3:
        place[rng.choice(OTHER_NAMES)] = place.pop(key) if rng.random() < 0.5 else rng.choice(VALUES)
    elif rng.random() < 0.1:
        del place[key]
    else:
        place[key] = rng.choice(VALUES)
    return json.dumps(fields, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")


def replace_json(content: bytes, rng: random.Random) -> bytes:
    return json.dumps(rng.choice(VALUES)).encode()


def encode_otherwise(content: bytes, rng: random.Random) -> bytes:
    return content.decode(errors="replace").encode(rng.choice(["utf-8-sig", "utf-16", "utf-16-le", "utf-32"]))


def change_header(content: bytes, rng: random.Random) -> bytes:
    """A safetensors file whose header says something else, and agrees with its own length or not."""
    length = int.from_bytes(content[:8], "little")
    header = change_value(content[8 : 8 + length], rng)
    told = rng.choice([len(header), len(header), len(header), 0, 1, 2**31, 2**63, 2**64 - 1])
    return told.to_bytes(8, "little") + header + content[8 + length :]


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    return next(list_damaged(content, seed=rng.getrandbits(32), count=1))


def put_something_else(path: Path, rng: random.Random) -> None:
    """No file, or what only looks like one, in the place of a file."""
    path.unlink()
    kind = rng.randrange(7)
    if kind == 0:
        os.mkfifo(path)
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        path.symlink_to(path.name)  # a loop
    elif kind == 3:
        path.symlink_to("nowhere")
    elif kind == 4:
        path.symlink_to(rng.choice(["/dev/zero", "/dev/null"]))
    elif kind == 5:
        path.touch()


def mutate(folder: Path, rng: random.Random) -> None:
    paths = [path for path in sorted(folder.iterdir()) if path.is_file()]
    for path in rng.sample(paths, rng.choice([1, 1, 1, 2])):
        changes: list[Callable[[bytes, random.Random], bytes]] = [damage_bytes]
        if path.suffix == ".json":
            changes = [change_value] * 12 + [replace_json, encode_otherwise, damage_bytes]
        elif path.suffix == ".safetensors":
            changes += [change_header] * 3
        elif path.suffix in (".txt", ".jinja"):
            changes += [encode_otherwise]
        if rng.random() < 0.1:
            put_something_else(path, rng)
        else:
            path.write_bytes(rng.choice(changes)(path.read_bytes(), rng))


@contextmanager
def memory_limit(num_bytes: int) -> Iterator[None]:
    """No more than this many bytes of further address space for a block."""
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def answer(folder: Path) -> None:
    """What a command does with a folder, up to the first token of an answer."""
    check_checkpoint(folder)
    fingerprint_checkpoint(folder)
    model, tokenizer = load_checkpoint(folder, InferenceSettings(device="cpu", dtype="float32"))
    model.chat(tokenizer, None, "ab", {"max_new_tokens": 1})


def try_seeds(folder: Path, work: Path, seeds: range) -> tuple[int, list[str]]:
    """How many damaged folders answered, and the messages about those that were refused."""
    answered, messages = 0, []
    for seed in seeds:
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(folder, work)
        mutate(work, random.Random(seed))
        try:
            with time_limit(LONGEST_S), memory_limit(MOST_BYTES):
                answer(work)
        except (CheckpointError, ConfigError) as error:
            messages.append(f"seed {seed}: {error}")
        except BaseException as error:
            pytest.fail(f"seed {seed}: {error!r}")
        else:
            answered += 1
    return answered, messages


@pytest.mark.filterwarnings("ignore")  # about what is damaged
@pytest.mark.parametrize("number", range(3), ids=["sentencepiece", "fast", "slow"])
@pytest.mark.parametrize("count", [15, pytest.param(400, marks=pytest.mark.slow)])
def test_damaged_folders_answer_or_are_refused_in_one_line(folders, tmp_path, number, count):
    answer(folders[number])
    answered, messages = try_seeds(folders[number], tmp_path / "work", range(count))
    assert answered > 0
    assert messages
    assert not [message for message in messages if "\n" in message or "MemoryError" in message]
