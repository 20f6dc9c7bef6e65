"""One sample of needles in a corpus: draw a quiz, fill a context around its needles, check the result.

Length. A training document has the asked tokens with template, question and answer. Of a test item the context has them
to 1 %, and the whole prompt too, unless the question itself is longer than 1 % (options that are images).

Depth. What is asked for stands in every tenth of the contexts equally often. Where the answer follows from several
needles, this holds for the mean of their depths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil
from pathlib import Path
from random import Random

from internvl.data.storage.media import load_image, read_image_size
from internvl.errors import ConfigError
from internvl.synth.contexts import Piece, PieceCounter, list_images, write_pieces
from internvl.synth.corpus.documents import read_corpus, split_corpus
from internvl.synth.corpus.filler import CorpusPieces, cut_corpus, repeat_forever
from internvl.synth.forms import Record, Split, write_conversation, write_item, write_lengths
from internvl.synth.images import write_jpeg
from internvl.synth.lengths import TOLERANCE
from internvl.synth.model_reader import ModelReader, load_model_reader
from internvl.synth.needles.cards import MIN_SIDE, OPTION_SIDE, draw_card, paste_card
from internvl.synth.needles.filling import LongContext, build_long_context
from internvl.synth.needles.needle_spec import NeedleSpec, SampleSpec, read_sample_spec
from internvl.synth.needles.quizzes import Form, Quiz, QuizRequest, draw_quiz
from internvl.synth.shortcuts import contains_answer, count_words

_MAX_TRIES = 20


@dataclass(frozen=True)
class Materials:
    """Model and corpus that the samples of a split are made from."""

    reader: ModelReader
    counter: PieceCounter
    pieces: CorpusPieces  # texts and images of the corpus
    carriers: tuple[str, ...]  # images that can carry a card, by path in the corpus


@cache
def load_materials(spec: NeedleSpec, split: Split) -> Materials:
    """Read corpus and model, once per process.

    Raises:
        ConfigError: The corpus has no text, or no image for image needles.
        CheckpointError: The model cannot be read.
    """
    reader = load_model_reader(spec.model, spec.max_num)
    corpus = read_corpus(spec.corpus)
    if len(spec.splits) == 2:
        train, test = split_corpus(corpus, test_share=spec.test_share, seed=spec.seed)
        corpus = train if split == "train" else test
    carriers = tuple(path for path in corpus.images if min(read_image_size(spec.corpus / path)) >= MIN_SIDE)
    if spec.has_image_tasks and not carriers:
        raise ConfigError(
            f"the {split} part of corpus {spec.corpus} has no image of at least {MIN_SIDE} x {MIN_SIDE} pixels that "
            "can carry a needle; add some, or ask for --tasks with text needles"
        )
    pieces = cut_corpus(spec.corpus, corpus, reader, prefix="corpus")
    return Materials(reader, PieceCounter(reader.count_text), pieces, carriers)


def make_sample(spec: NeedleSpec, folder: Path, file: str, number: int) -> Record:
    """One sample; its needle images are written on the way. ConfigError if it cannot be made."""
    sample = read_sample_spec(spec, file, number)
    materials = load_materials(spec, sample.split)
    root = folder / sample.image_root
    rng = Random(f"{spec.seed}/{sample.name}")
    flaw = None
    for _ in range(_MAX_TRIES):
        quiz = _draw_quiz(spec, sample, rng)
        needles = _make_needles(materials, quiz, sample, root, rng)
        options = _write_option_images(quiz, sample, root)
        asked_length = sample.length.draw(rng)
        asked = {"image": options, "conversations": write_conversation("", [quiz.question])}
        overhead = materials.reader.count_record(asked, root)
        depths = draw_depths(spec, sample.number, quiz, rng)
        context = build_long_context(
            draw_filler(materials, spec.image_share, rng, starts_with_image=sample.has_image_needles),
            needles,
            depths,
            num_tokens=_find_context_length(asked_length, sample, overhead),
            counter=materials.counter,
            num_leading=1 if sample.has_image_needles else 0,  # no needle is the first image
        )
        flaw = find_flaw(context, quiz, needles)
        if flaw is None:
            record = _write_record(sample, context, quiz, options, asked_length)
            if sample.split == "train":
                record["metadata"]["document_length"] = materials.reader.count_record(record, root)
            return record
    raise ConfigError(f"sample {sample.name} cannot be made of this corpus: {flaw}; add other texts to it")


def _draw_quiz(spec: NeedleSpec, sample: SampleSpec, rng: Random) -> Quiz:
    is_choice = spec.answers == "choice" or (spec.answers == "both" and sample.number % 2)
    form: Form = "choice" if is_choice else "free"
    # Four choices in a row have the right option at four different places, in an order of their own.
    turn, place = divmod(sample.number // 2 if spec.answers == "both" else sample.number, 4)
    right = Random(f"{spec.seed}/{sample.task}/{sample.length.label}/{turn}").sample(range(4), 4)[place]
    return draw_quiz(sample.task, QuizRequest(form, spec.num_needles, sample.split, right), rng)


def draw_depths(spec: NeedleSpec, number: int, quiz: Quiz, rng: Random) -> list[float]:
    """Wanted depth of each needle; the asked ones have the sample's depth as their mean, in their order."""
    tenth = (number % 10 + number // 10) % 10
    mean = spec.depths[number % len(spec.depths)] if spec.depths else (tenth + rng.random()) / 10
    asked = quiz.question.asked
    offsets = sorted(rng.uniform(-1, 1) for _ in asked)
    middle = sum(offsets) / len(offsets)
    largest = max(max(abs(offset - middle) for offset in offsets), 1e-9)
    room = min(mean, 1 - mean)
    around = iter(mean + room * (offset - middle) / largest if len(offsets) > 1 else mean for offset in offsets)
    return [next(around) if index in asked else rng.random() for index in range(len(quiz.needles))]


def _make_needles(materials: Materials, quiz: Quiz, sample: SampleSpec, root: Path, rng: Random) -> list[Piece]:
    """The needles as pieces; cards are pasted on pictures of the corpus that leave room for the rest."""
    pieces, needles = materials.pieces, []
    share = sample.length.low // (4 * len(quiz.needles))
    for index, needle in enumerate(quiz.needles):
        if isinstance(needle, str):
            needles.append(Piece(text=needle))
            continue
        drawn = rng.choices(materials.carriers, k=8)
        smallest = min(drawn, key=lambda path: pieces.images[path].num_visual)
        carrier = next((path for path in drawn if pieces.images[path].num_visual <= share), smallest)
        image = paste_card(load_image(pieces.folder / carrier), needle, rng)
        name = f"needle/{sample.name}-{index}.jpg"
        write_jpeg(image, root / name)
        needles.append(Piece(image=name, num_visual=pieces.images[carrier].num_visual))
    return needles


def _write_option_images(quiz: Quiz, sample: SampleSpec, root: Path) -> list[str]:
    names = [f"needle/{sample.name}-option{index}.jpg" for index in range(len(quiz.option_cards))]
    for name, card in zip(names, quiz.option_cards, strict=True):
        write_jpeg(draw_card(card, OPTION_SIDE), root / name)
    return names


def draw_filler(
    materials: Materials, image_share: float, rng: Random, *, starts_with_image: bool = False
) -> Iterator[Piece]:
    """Pieces of the corpus without end: documents in random order, loose images between paragraphs."""
    pieces, counter = materials.pieces, materials.counter
    documents, paths = pieces.corpus.documents, pieces.corpus.images
    if starts_with_image:
        drawn = rng.choices(materials.carriers, k=4)
        yield min((pieces.images[path] for path in drawn), key=lambda piece: piece.num_visual)
    num_visual = num_text = 0

    def read_through() -> Iterator[Piece]:
        nonlocal num_visual, num_text
        for document in rng.sample(documents, len(documents)):
            for piece in pieces.read(document):
                num_visual += piece.num_visual
                if piece.text is None:
                    yield piece
                    continue
                num_text += counter.count_alone(piece)
                yield piece
                if paths and num_visual < image_share * (num_visual + num_text):
                    extra = pieces.images[rng.choice(paths)]
                    num_visual += extra.num_visual
                    yield extra

    yield from repeat_forever(read_through)


def _find_context_length(asked_length: int, sample: SampleSpec, overhead: int) -> int:
    """Tokens of the context when template, question and answer take `overhead`."""
    if sample.split == "train":
        return asked_length - overhead
    return max(asked_length - overhead, ceil(asked_length * (1 - 0.75 * TOLERANCE)))


def find_flaw(context: LongContext, quiz: Quiz, needles: Sequence[Piece]) -> str | None:
    """The reason to reject a sample (its answer is given away, or a needle is not unique); None if it is good."""
    text, images = write_pieces(context.pieces), list_images(context.pieces)
    question, answer = quiz.question, quiz.question.answer
    for needle in needles:
        number = images.count(needle.image) if needle.image else text.count(needle.content)
        if number != 1:
            return f"the needle {needle.content!r} stands in the context {number} times, expected once"
    if not isinstance(answer, str):
        return None
    if isinstance(quiz.needles[0], str):
        number = count_words(text, answer)
        if number != 1:
            return f"the answer {answer!r} stands in the context {number} times, expected once"
    if not question.has_image_options and contains_answer(question.text, answer):
        return f"the answer {answer!r} stands in the question"
    return None


def _write_record(
    sample: SampleSpec, context: LongContext, quiz: Quiz, options: Sequence[str], asked_length: int
) -> Record:
    question = quiz.question
    text, images = write_pieces(context.pieces), list_images(context.pieces)
    shown = {piece.needle: piece.shown for piece in context.pieces if piece.needle is not None}
    depths = [round(context.depths[index], 6) for index in question.asked]
    facts = {
        "placed_depth": depths[0] if len(depths) == 1 else depths,
        **write_lengths(context.num_text, context.num_visual, len(images)),
        "needles": [shown[index] for index in question.asked],
        "hidden": [shown[index] for index in range(len(quiz.needles))],
        "chance": question.chance,
        "asked_length": asked_length,
    }
    if sample.split == "train":
        turns = write_conversation(text, [question])
        return {"id": sample.name, "image": [*images, *options], "conversations": turns, "metadata": facts}
    choices = [option for option in question.options if option is not None]
    meta = {**facts, "choices": choices or None, "choices_image_path": list(options) or None}
    return write_item(sample.name, text, images, question, meta)
