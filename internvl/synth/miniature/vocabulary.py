"""The words of the retrieval task: what a needle says, how it is asked for, what the answer is.

A text needle shows one value (`Note "mango".`) and is asked for by its category ("Which fruit?"). A value belongs to
exactly one category, so the needle is found by its content and not by its place. Guessing from the question alone is
right once in ten. The needle does not name its category: that would be a decoy for the step that a small model finds
hardest, to see which category was asked for last. The value stands in quotes so that it is the same token there and in
the answer, where no space precedes it.

An image needle shows two digits and is asked for the first and for the second: that takes the order of the visual
tokens, and so their positions. In some layouts (digit_layouts.py) it is also asked for the left and for the right one.

Bar charts are a task of their own: the answer is the colour of a bar ("Which bar is highest?").
"""

CATEGORIES: dict[str, tuple[str, ...]] = {
    "fruit": ("apple", "mango", "lemon", "grape", "peach", "plum", "pear", "melon", "cherry", "fig"),
    "animal": ("horse", "tiger", "sheep", "goat", "mouse", "camel", "zebra", "rabbit", "otter", "wolf"),
    "tool": ("hammer", "saw", "drill", "wrench", "chisel", "axe", "rake", "shovel", "pliers", "ladder"),
    "color": ("red", "blue", "green", "yellow", "purple", "brown", "black", "white", "pink", "gray"),
    "metal": ("iron", "copper", "gold", "silver", "zinc", "tin", "nickel", "steel", "bronze", "brass"),
    "drink": ("tea", "coffee", "milk", "water", "juice", "wine", "beer", "soda", "cocoa", "cider"),
    "flower": ("rose", "tulip", "lily", "daisy", "iris", "lotus", "poppy", "orchid", "dahlia", "aster"),
    "garment": ("hat", "coat", "shirt", "scarf", "glove", "sock", "boot", "belt", "skirt", "jacket"),
}
# What the bars of a chart are painted with; their names are values of the category "color".
BAR_COLORS: dict[str, str] = {
    "red": "#d62728",
    "blue": "#1f4fd6",
    "green": "#1a9641",
    "yellow": "#f2c100",
    "purple": "#8e44ad",
    "black": "#101010",
    "pink": "#ff7fbf",
    "gray": "#909090",
}
NUM_DIGITS = 10
EXTREMES = ("highest", "lowest")
ORDINALS = ("first", "second")
SIDES = ("left", "right")


def write_needle(value: str) -> str:
    """The sentence of a text needle."""
    return f'Note "{value}".'


def ask_category(category: str) -> str:
    """The question whose answer is the category's value."""
    return f"Which {category}?"


def ask_digit(word: str) -> str:
    """The question for the digit of the image needle that is `first`, `second`, `left` or `right`."""
    return f"Which digit is {word}?"


def ask_bar(extreme: str) -> str:
    """The question whose answer is the colour of the `highest` or `lowest` bar."""
    return f"Which bar is {extreme}?"


def list_values() -> list[str]:
    """All values of all categories."""
    return [value for values in CATEGORIES.values() for value in values]


def list_words() -> list[str]:
    """Every word that needles, questions and answers are made of, each once."""
    words = [*CATEGORIES, *ORDINALS, *SIDES, *EXTREMES, "Note", "Which", "digit", "bar", "is", *list_values()]
    return [*words, *(str(digit) for digit in range(NUM_DIGITS))]
