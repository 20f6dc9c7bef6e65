"""Every file and folder that the meta files of V2PE-Data name is in the tree that dataset/README.md shows."""

import json
from collections import Counter

import pytest

from internvl.data.meta import load_meta
from tests.train.tiny_run import REPOSITORY

META_FILES = {"32k": 45, "128k": 5, "256k": 5}


def read_tree() -> set[str]:
    """Paths of the tree in dataset/README.md, below dataset/; folders end in a slash."""
    text = (REPOSITORY / "dataset" / "README.md").read_text()
    paths: set[str] = set()
    folders: list[str] = []
    for line in text[text.index("    dataset/\n") :].splitlines():
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        del folders[depth:]
        entries = line.split()
        paths.update("".join([*folders[1:], entry]) for entry in entries)
        folders.append(entries[0])
    return paths


def read_meta(length: str) -> dict[str, dict]:
    return json.loads((REPOSITORY / f"shell/data/annotation_train_{length}.json").read_text())


def test_the_tree_is_read_as_it_looks():
    tree = read_tree()
    assert {"annotation/", "image/long_vqa/paste/gqa/val/", "val/long_mr_1m/", "image/milebench/nh/train/"} <= tree
    assert "annotation/milebench_16k/train_milebench_gpr.jsonl" in tree
    assert len([path for path in tree if path.endswith(".jsonl")]) == sum(META_FILES.values())


@pytest.mark.parametrize(("length", "count"), META_FILES.items())
def test_a_meta_file_names_what_is_in_the_tree(length, count):
    sources = read_meta(length)
    assert len(sources) == count
    wanted = {source["annotation"] for source in sources.values()} | {s["root"] + "/" for s in sources.values()}
    assert wanted - read_tree() == set()
    assert len({source["annotation"] for source in sources.values()}) == count


def test_every_annotation_of_the_tree_is_used_once():
    used = Counter(source["annotation"] for length in META_FILES for source in read_meta(length).values())
    assert set(used) == {path for path in read_tree() if path.endswith(".jsonl")}
    assert set(used.values()) == {1}


@pytest.mark.parametrize("length", META_FILES)
def test_training_reads_a_meta_file_when_the_tree_is_there(length, tmp_path):
    for path in read_tree():
        target = tmp_path / path
        (target if path.endswith("/") else target.parent).mkdir(parents=True, exist_ok=True)
        if not path.endswith("/"):
            target.write_text("{}\n")
    specs = load_meta(REPOSITORY / f"shell/data/annotation_train_{length}.json", data_root=tmp_path)
    assert len(specs) == META_FILES[length]
    assert all(spec.data_augment and spec.repeat_time > 0 for spec in specs)


def test_the_32k_mixture_is_the_published_one():
    sources = read_meta("32k").values()
    assert sum(source["length"] for source in sources) == 1_526_400
    assert round(sum(source["length"] * source["repeat_time"] for source in sources)) == 2_726_872


def test_needles_in_milebench_have_their_own_tile_limits():
    limits = {name: source.get("max_dynamic_patch") for name, source in read_meta("32k").items()}
    assert {name: limit for name, limit in limits.items() if limit} == {
        **{f"train_milebench_nh_txt_{kind}": 5 for kind in ("ex", "hd")},
        **{f"train_milebench_nh_img_{kind}": 3 for kind in ("ex", "fk", "ft", "hd")},
    }
