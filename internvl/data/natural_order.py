"""Natural order: names sorted with the numbers in them as numbers, so that `2.jpg` comes before `10.jpg`."""

import re

_WHOLE, _DECIMAL = re.compile(r"(\d+)"), re.compile(r"(\d+(?:\.\d+)?)")


def natural_key(name: str, *, decimals: bool = False) -> list[tuple[str, float]]:
    """Sorting key of a name: its pieces of text, each with the number that follows it.

    With `decimals` a point between digits belongs to the number, as in `eval_0.25` before `eval_0.5`. It does not in
    numbered files: `shot1.9.jpg` comes before `shot1.10.jpg`.
    """
    pieces = (_DECIMAL if decimals else _WHOLE).split(name)
    numbers = [float(number) if decimals else int(number) for number in pieces[1::2]]
    return list(zip(pieces[::2], [*numbers, 0], strict=True))
