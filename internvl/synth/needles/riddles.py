"""What a long context is asked: facts and cards to hide in it, the question, the answer, the options.

    retrieval-text    several people have numbers; what is the number of one of them?
    counting-text     a warden counts things at several places; how many were they at each?
    reasoning-text    who holds the key to which house, which house stands in which town: in which town ...?
    retrieval-image   several cards with figures and numbers; which number is on the red star's card (or: which card?)
    counting-image    cards with several figures each; how many stars are on each card?
    reasoning-image   the sum of the numbers on two cards

Every riddle hides needles that are not asked for, of the same form, so that finding any needle is not enough. Names of
training and test differ. Wording and answers follow from the generator alone.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from string import ascii_uppercase
from typing import Literal

from internvl.errors import ConfigError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.synth.miniature.vocabulary import SHORT_ANSWER_SENTENCE
from internvl.synth.needles.cards import COLORS, SHAPES, Card

Split = Literal["train", "test"]
Form = Literal["free", "choice"]

OPTION_SENTENCE = "Answer with the option's letter from the given choices directly."  # as evaluation asks
NUM_OPTIONS = 4
MAX_NEEDLES = 8
_FIRST_NAMES = (
    "Maren", "Tobin", "Ilka", "Osric", "Petra", "Quill", "Rasmus", "Selma", "Torben", "Ulla", "Viggo", "Wenda",
    "Anselm", "Birte", "Caspar", "Dorrit", "Eskil", "Frida", "Gudrun", "Halvar", "Ingmar", "Jorun", "Kelda", "Lorcan",
)  # fmt: skip
_LAST_NAMES = (
    "Oldfield", "Brandt", "Castellan", "Drummond", "Eastwick", "Farrow", "Greaves", "Holloway", "Iverson", "Kestrel",
    "Lindqvist", "Marlowe", "Norcross", "Pemberton", "Quarles", "Ravensdale", "Stroud", "Thornbury", "Underhill",
    "Voss",
)  # fmt: skip
_TOWNS = tuple(
    beginning + ending
    for ending in ("wick", "worth", "dale", "holt", "moor", "combe", "gate", "furt", "march", "hollow")
    for beginning in (
        "Harn",
        "Pell",
        "Quen",
        "Ras",
        "Sker",
        "Taven",
        "Ulver",
        "Vinter",
        "Wex",
        "Yarrow",
        "Zell",
        "Corv",
    )
)
_HOUSES = (
    "Amber", "Basalt", "Cobalt", "Damask", "Ebony", "Flint", "Garnet", "Hazel", "Indigo", "Jasper", "Larch", "Marble",
    "Ochre", "Pewter", "Quartz", "Russet", "Sable", "Teal", "Umber", "Willow",
)  # fmt: skip
_PLACES = (
    "harbour", "mill", "quarry", "orchard", "chapel", "depot", "lighthouse", "market", "bridge", "tannery", "foundry",
    "granary", "brewery", "shipyard", "vineyard", "sawmill",
)  # fmt: skip
_THINGS = ("lanterns", "barrels", "crates", "ladders", "anchors", "wheelbarrows", "bells", "ropes")
_ATTRIBUTES = ("locker number", "ticket number", "membership number", "badge number", "parcel number")
_NUMBERS = range(10_000, 100_000)
_CARD_NUMBERS = range(10, 50)
_MOST_COUNTED = 20
_MOST_FIGURES = 6


@dataclass(frozen=True)
class Riddle:
    """Needles and a question about some of them.

    Attributes:
        task: `KIND-NEEDLE`, as MM-NIAH names its files.
        needles: Sentences or cards, in the order in which they have to stand in the context.
        asked: Numbers of those that the answer follows from.
        question: The question, without options.
        answer: Text, or counts in the order of the needles.
        options: Wrong and right options, where the right one is `answer` or the asked card; empty for a free answer.
        right: Number of the right option.
        chance: Share of right answers of somebody who knows the question only; None where that has no meaning.
    """

    task: str
    needles: tuple[str | Card, ...]
    asked: tuple[int, ...]
    question: str
    answer: str | list[int]
    options: tuple[str | Card, ...] = ()
    right: int = 0
    chance: float | None = None

    @property
    def gold(self) -> str | int | list[int]:
        """The answer as MM-NIAH's files hold it: text, number of the option, or counts."""
        return self.right if self.options else self.answer


def draw_riddle(task: str, form: Form, *, num_needles: int, split: Split, right: int, rng: Random) -> Riddle:
    """Make up a riddle.

    Args:
        task: One of `TASKS`.
        form: Free answer or choice among four; counting is always free.
        num_needles: Needles (pairs of needles, in reasoning over text), 2 to 8.
        split: Whose names to use.
        right: Place of the right option.
        rng: Draws everything else.

    Raises:
        ConfigError: No such task, or too few or too many needles.
    """
    if task not in TASKS:
        raise ConfigError(f"unknown task {task!r}; expected one of {', '.join(TASKS)}")
    if not 2 <= num_needles <= MAX_NEEDLES:
        raise ConfigError(f"num_needles is {num_needles}, expected 2 to {MAX_NEEDLES}")
    return TASKS[task](form, num_needles, split, right, rng)


def _half(values: tuple[str, ...], split: Split) -> tuple[str, ...]:
    return values[::2] if split == "train" else values[1::2]


def _draw_people(number: int, split: Split, rng: Random) -> list[str]:
    firsts, lasts = _half(_FIRST_NAMES, split), _half(_LAST_NAMES, split)
    return [
        f"{first} {last}" for first, last in zip(rng.sample(firsts, number), rng.sample(lasts, number), strict=True)
    ]


def _mix_options(answer: str, wrong: list[str], right: int) -> tuple[str, ...]:
    options = wrong[: NUM_OPTIONS - 1]
    return (*options[:right], answer, *options[right:])


def _retrieve_text(form: Form, num_needles: int, split: Split, right: int, rng: Random) -> Riddle:
    attribute = rng.choice(_ATTRIBUTES)
    people = _draw_people(num_needles, split, rng)
    numbers = [str(number) for number in rng.sample(_NUMBERS, num_needles + NUM_OPTIONS)]
    asked = rng.randrange(num_needles)
    answer = numbers[asked]
    in_context = [number for number in numbers[:num_needles] if number != answer]
    wrong = rng.sample(in_context, len(in_context))[: NUM_OPTIONS - 1] + numbers[num_needles:]
    return Riddle(
        task="retrieval-text",
        needles=tuple(f"The {attribute} of {name} is {n}." for name, n in zip(people, numbers, strict=False)),
        asked=(asked,),
        question=f"What is the {attribute} of {people[asked]}?",
        answer=answer,
        options=_mix_options(answer, wrong, right) if form == "choice" else (),
        right=right,
        chance=1 / NUM_OPTIONS if form == "choice" else 1 / len(_NUMBERS),
    )


def _count_text(form: Form, num_needles: int, split: Split, right: int, rng: Random) -> Riddle:
    thing, other = rng.sample(_half(_THINGS, split), 2)
    places = rng.sample(_half(_PLACES, split), num_needles)
    counts = [rng.randint(2, _MOST_COUNTED) for _ in places]
    num_asked = num_needles - 1
    things = [thing] * num_asked + [other]
    order = rng.sample(range(num_needles), num_needles)
    needles = [f"At the {places[n]}, the warden counted {counts[n]} {things[n]}." for n in order]
    asked = tuple(place for place, n in enumerate(order) if n < num_asked)
    return Riddle(
        task="counting-text",
        needles=tuple(needles),
        asked=asked,
        question=f"The text says at some places how many {thing} the warden counted there. How many were they at each "
        "of these places? Answer with a JSON list of numbers in the order of the text.",
        answer=[counts[n] for n in order if n < num_asked],
    )


def _reason_text(form: Form, num_needles: int, split: Split, right: int, rng: Random) -> Riddle:
    people = _draw_people(num_needles, split, rng)
    houses = rng.sample(_half(_HOUSES, split), num_needles)
    towns = rng.sample(_half(_TOWNS, split), num_needles + NUM_OPTIONS)
    keys = [f"{person} holds the key to the {house} House." for person, house in zip(people, houses, strict=True)]
    places = [f"The {house} House stands in {town}." for house, town in zip(houses, towns, strict=False)]
    order = rng.sample(range(2 * num_needles), 2 * num_needles)
    chain = rng.randrange(num_needles)
    answer = towns[chain]
    in_context = [town for town in towns[:num_needles] if town != answer]
    wrong = rng.sample(in_context, len(in_context))[: NUM_OPTIONS - 1] + towns[num_needles:]
    return Riddle(
        task="reasoning-text",
        needles=tuple((keys + places)[n] for n in order),
        asked=tuple(place for place, n in enumerate(order) if n % num_needles == chain),
        question=f"In which town stands the house to which {people[chain]} holds the key?",
        answer=answer,
        options=_mix_options(answer, wrong, right) if form == "choice" else (),
        right=right,
        chance=1 / NUM_OPTIONS if form == "choice" else 1 / len(_half(_TOWNS, split)),
    )


def _draw_cards(number: int, rng: Random) -> list[Card]:
    """Cards of different kinds and numbers."""
    kinds = rng.sample([(color, shape) for color in COLORS for shape in SHAPES], number)
    numbers = rng.sample(_CARD_NUMBERS, number)
    return [Card(color, shape, number=n) for (color, shape), n in zip(kinds, numbers, strict=True)]


def _retrieve_image(form: Form, num_needles: int, split: Split, right: int, rng: Random) -> Riddle:
    cards = _draw_cards(num_needles, rng)
    asked = rng.randrange(num_needles)
    card = cards[asked]
    if form == "free":
        return Riddle(
            task="retrieval-image",
            needles=tuple(cards),
            asked=(asked,),
            question=f"One of the pictures carries a card with a {card.kind}. Which number is on that card?",
            answer=str(card.number),
            chance=1 / len(_CARD_NUMBERS),
        )
    shown = {(other.color, other.shape) for other in cards}
    rest = [(color, shape) for color in COLORS for shape in SHAPES if (color, shape) not in shown]
    numbers = [number for number in _CARD_NUMBERS if number not in {other.number for other in cards}]
    drawn = zip(rng.sample(rest, NUM_OPTIONS - 1), rng.sample(numbers, NUM_OPTIONS - 1), strict=True)
    wrong = [Card(color, shape, number=number) for (color, shape), number in drawn]
    return Riddle(
        task="retrieval-image",
        needles=tuple(cards),
        asked=(asked,),
        question="Which of the following cards is on one of the pictures above?",
        answer=card.kind,
        options=(*wrong[:right], card, *wrong[right:]),
        right=right,
        chance=1 / NUM_OPTIONS,
    )


def _count_image(form: Form, num_needles: int, split: Split, right: int, rng: Random) -> Riddle:
    (color, shape), (other_color, other_shape) = rng.sample([(c, s) for c in COLORS for s in SHAPES], 2)
    other = rng.randrange(num_needles)
    counts = [rng.randint(1, _MOST_FIGURES) for _ in range(num_needles)]
    cards = [
        Card(other_color, other_shape, count=count) if number == other else Card(color, shape, count=count)
        for number, count in enumerate(counts)
    ]
    return Riddle(
        task="counting-image",
        needles=tuple(cards),
        asked=tuple(number for number in range(num_needles) if number != other),
        question=f"Some of the pictures carry a card with one or more figures of the kind {color} {shape}. How many "
        "are on each of these cards? Answer with a JSON list of numbers in the order of the pictures.",
        answer=[count for number, count in enumerate(counts) if number != other],
    )


def _reason_image(form: Form, num_needles: int, split: Split, right: int, rng: Random) -> Riddle:
    cards = _draw_cards(num_needles, rng)
    first, second = sorted(rng.sample(range(num_needles), 2))
    numbers = [card.number or 0 for card in cards]
    total = numbers[first] + numbers[second]
    near = [value for value in range(2 * _CARD_NUMBERS.start, 2 * _CARD_NUMBERS.stop - 2) if value != total]
    return Riddle(
        task="reasoning-image",
        needles=tuple(cards),
        asked=(first, second),
        question=f"One picture carries a card with a {cards[first].kind}, another one a card with a "
        f"{cards[second].kind}. What is the sum of the numbers on these two cards?",
        answer=str(total),
        options=_mix_options(str(total), [str(value) for value in rng.sample(near, NUM_OPTIONS - 1)], right)
        if form == "choice"
        else (),
        right=right,
        chance=1 / NUM_OPTIONS if form == "choice" else 1 / (len(near) + 1),
    )


TASKS: dict[str, Callable[[Form, int, Split, int, Random], Riddle]] = {
    "retrieval-text": _retrieve_text,
    "counting-text": _count_text,
    "reasoning-text": _reason_text,
    "retrieval-image": _retrieve_image,
    "counting-image": _count_image,
    "reasoning-image": _reason_image,
}


def write_question(riddle: Riddle) -> str:
    """The question with options and closing sentence, as evaluation writes it."""
    if riddle.options:
        shown = (IMAGE_PLACEHOLDER if isinstance(option, Card) else option for option in riddle.options)
        lines = (f"\n{letter}. {option}" for letter, option in zip(ascii_uppercase, shown, strict=False))
        return f"{riddle.question}{''.join(lines)}\n{OPTION_SENTENCE}"
    return riddle.question if isinstance(riddle.answer, list) else f"{riddle.question}\n{SHORT_ANSWER_SENTENCE}"


def write_answer(riddle: Riddle) -> str:
    """What a model shall say."""
    if riddle.options:
        return ascii_uppercase[riddle.right]
    return json.dumps(riddle.answer) if isinstance(riddle.answer, list) else riddle.answer
