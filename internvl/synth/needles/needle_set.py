"""Multimodal needles in long contexts of any corpus: the folder with training files and test items.

OUT/meta.json                                        the training files, for --meta_path
OUT/annotation/train_long_mr_NEEDLE_KIND_LOW_HIGH.jsonl
OUT/image/corpus/  OUT/image/needle/                 images of the training samples
OUT/MM-NIAH/mm_niah_test/annotations/KIND-NEEDLE.jsonl     all lengths of a task, for --data-root OUT
OUT/MM-NIAH/mm_niah_test/images/{corpus,needle}/
OUT/datasheet.json, OUT/datasheet.md
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from internvl.synth.corpus.documents import describe_corpus, read_corpus
from internvl.synth.datasheet import Sheet
from internvl.synth.folders import Origin
from internvl.synth.forms import Record, describe_source, write_meta
from internvl.synth.images import copy_images
from internvl.synth.model_reader import load_model_reader
from internvl.synth.needles.needle_samples import load_materials, make_sample
from internvl.synth.needles.needle_spec import NeedleSpec, SampleSpec, find_image_root, read_sample_spec
from internvl.synth.parts import Recipe, build_in_parts
from internvl.synth.shortcuts import probe_item, probe_training_record

BUILDER = "internvl.synth.needles"
FORMAT = 1  # raised when the same arguments give other files
_TOKENS_PER_PART = 1_000_000


def build_needle_set(out: Path, spec: NeedleSpec, *, num_workers: int = 0, overwrite: bool = False) -> bool:
    """Make the data set in the folder `out`; returns False when it was there already. Raises as `build_in_parts`."""
    longest = max(length.high for length in (*spec.train_lengths, *spec.test_lengths))
    origin = describe_origin(spec)
    recipe = Recipe(
        origin=origin,
        files=spec.files,
        samples_per_part=min(max(_TOKENS_PER_PART // longest, 1), 64),
        prepare=partial(_copy_corpus, spec),
        make_sample=partial(make_sample, spec),
        finish=partial(_finish, spec, origin),
    )
    return build_in_parts(out, recipe, label="needles", num_workers=num_workers, overwrite=overwrite)


def describe_origin(spec: NeedleSpec) -> Origin:
    """Everything that the files follow from."""
    reader = load_model_reader(spec.model, spec.max_num)
    digest = describe_corpus(spec.corpus)
    return Origin.of(BUILDER, {"format": FORMAT, **asdict(spec), "corpus_sha256": digest, **reader.describe()})


def _copy_corpus(spec: NeedleSpec, folder: Path) -> None:
    for split in spec.splits:
        copy_images(load_materials(spec, split).pieces.list_copies(), folder / find_image_root(split))


def _finish(spec: NeedleSpec, origin: Origin, folder: Path, samples: Iterable[tuple[str, Record]]) -> None:
    sheet = Sheet()
    numbers: Counter[str] = Counter()
    for file, record in samples:
        _note(sheet, read_sample_spec(spec, file, numbers[file]), file, record)
        numbers[file] += 1
    if "train" in spec.splits:
        max_num = load_materials(spec, "train").reader.max_num
        sources = {
            Path(file).stem: describe_source(root="image", annotation=file, num_samples=number, max_num=max_num)
            for file, number in spec.train_files.items()
        }
        write_meta(folder / "meta.json", sources)
    corpora = {split: load_materials(spec, split).pieces.corpus for split in spec.splits}
    notes = [
        f"{split}: {len(corpus.documents)} documents, {len(corpus.images)} images" for split, corpus in corpora.items()
    ]
    problems = read_corpus(spec.corpus).problems
    notes += [f"left out of the corpus: {problem}" for problem in problems[:20]]
    notes += [f"and {len(problems) - 20} more"] * (len(problems) > 20)
    sheet.write(folder, origin, title="Multimodal needles in long contexts", notes=notes)


def _note(sheet: Sheet, sample: SampleSpec, file: str, record: Record) -> None:
    if sample.split == "test":
        facts = record["meta"]
        length, probe = facts["context_length"], probe_item(record, sample.task)
    else:
        facts = record["metadata"]
        length, probe = facts["document_length"], probe_training_record(record, sample.task)
    depths = facts["placed_depth"] if isinstance(facts["placed_depth"], list) else [facts["placed_depth"]]
    # A sample that fails these checks is not written; the sheet says how many have passed.
    sheet.checks["needles_that_stand_once"] += len(facts["needles"])
    sheet.checks["answers_that_are_not_in_the_question"] += 1
    sheet.note(file, length=length, asked=sample.length, depths=depths, probe=probe)
