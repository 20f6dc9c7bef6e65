"""Reading what builders made: the files themselves, and as the trainer reads them."""

import json

from internvl.data.loader import build_train_loader
from internvl.data.meta import load_meta
from internvl.data.plan import RowOptions

MAX_NUM = 4  # tiles per image in the tests of long data


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_files(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def take_batches(meta, encoder, number):
    loader = build_train_loader(load_meta(meta), encoder, RowOptions(num_streams=1))
    batches = iter(loader)
    return [next(batches) for _ in range(number)], loader


def items_of(root, task):
    return read_jsonl(root / "MM-NIAH" / "mm_niah_test" / "annotations" / f"{task}.jsonl")
