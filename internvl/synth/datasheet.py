"""Datasheets: facts about a data set for people (datasheet.md) and programs (datasheet.json)."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from internvl.synth.folders import Origin, write_datasheet
from internvl.synth.lengths import LengthRange
from internvl.synth.shortcuts import Probe, ShortcutScore, score_shortcuts

_NUM_DEPTHS = _NUM_LENGTHS = 10  # bins
_BAR = 40  # characters


@dataclass
class _FileFacts:
    """Lengths of samples, their deviation from the asked ones, and depths of what they ask for."""

    lengths: list[int] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    depths: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> dict[str, int]:
        lengths = self.lengths
        return {"least": min(lengths), "mean": round(sum(lengths) / len(lengths)), "most": max(lengths)}

    @property
    def largest_deviation(self) -> float:
        return round(max(self.deviations), 5)

    @property
    def length_histogram(self) -> dict[str, int]:
        """Samples by length, in equal bins from the shortest to the longest; the key is a bin's left edge."""
        least, most = min(self.lengths), max(self.lengths)
        width = max((most - least) / _NUM_LENGTHS, 1)
        cells = Counter(min(int((length - least) / width), _NUM_LENGTHS - 1) for length in self.lengths)
        return {str(round(least + cell * width)): cells[cell] for cell in sorted(cells)}

    @property
    def depth_histogram(self) -> list[int]:
        cells = Counter(min(int(depth * _NUM_DEPTHS), _NUM_DEPTHS - 1) for depth in self.depths)
        return [cells[cell] for cell in range(_NUM_DEPTHS)]

    def describe(self) -> dict[str, object]:
        return {
            "samples": len(self.lengths),
            "tokens": self.tokens,
            "largest_deviation": self.largest_deviation,
            "length_histogram": self.length_histogram,
            "depth_histogram": self.depth_histogram,
        }


class Sheet:
    """Collects facts about samples; `write` puts them into a folder."""

    def __init__(self) -> None:
        self._files: dict[str, _FileFacts] = defaultdict(_FileFacts)
        self._probes: list[Probe] = []
        self.checks: Counter[str] = Counter()

    def note(self, file: str, *, length: int, asked: LengthRange, depths: Sequence[float], probe: Probe) -> None:
        """Count one sample: `length` and `asked` are tokens, and the mean of `depths` is the depth that counts."""
        facts = self._files[file]
        facts.lengths.append(length)
        facts.deviations.append(max(asked.low / length, length / asked.high, 1.0) - 1.0)
        facts.depths.append(sum(depths) / len(depths))
        self._probes.append(probe)

    def write(self, folder: Path, origin: Origin, *, title: str, notes: Sequence[str]) -> None:
        """Write datasheet.json and datasheet.md."""
        files = dict(sorted(self._files.items()))
        shortcuts = score_shortcuts(self._probes)
        is_at_chance = all(row.at_chance for rows in shortcuts.values() for row in rows.values())
        checks = dict(sorted(self.checks.items()))
        rows = {group: {name: asdict(row) for name, row in rows.items()} for group, rows in shortcuts.items()}
        described = {
            "notes": list(notes),
            "files": {name: facts.describe() for name, facts in files.items()},
            "checks": {**checks, "shortcuts": rows, "all_shortcuts_at_chance": is_at_chance},
        }
        write_datasheet(folder, origin, described)
        lines = [f"# {title}", "", f"Made by `python -m {origin.builder}`.", "", *(f"- {note}" for note in notes)]
        lines += ["", "## Settings", "", *(f"- {name}: {value}" for name, value in origin.arguments.items())]
        lines += _write_samples(files)
        lines += ["", "## Checks", ""]
        lines += [
            f"- {name.replace('_', ' ')}: {value}"
            for name, value in {**checks, "all_shortcuts_at_chance": is_at_chance}.items()
        ]
        lines += _write_shortcuts(shortcuts)
        (folder / "datasheet.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_samples(files: Mapping[str, _FileFacts]) -> Iterator[str]:
    yield from ("", "## Samples", "", "| file | samples | least | mean | most tokens | outside of the asked length |")
    yield "|---|---|---|---|---|---|"
    for name, facts in files.items():
        tokens = " | ".join(str(number) for number in facts.tokens.values())
        yield f"| {name} | {len(facts.lengths)} | {tokens} | {facts.largest_deviation:.2%} |"
    for name, facts in files.items():
        depths = {f"{cell / _NUM_DEPTHS:.1f}": number for cell, number in enumerate(facts.depth_histogram)}
        yield from ("", f"### {name}")
        yield from ("", "Tokens from", "", "```", *_draw_bars(facts.length_histogram), "```")
        yield from ("", "Depth from", "", "```", *_draw_bars(depths), "```")


def _write_shortcuts(shortcuts: Mapping[str, Mapping[str, ShortcutScore]]) -> Iterator[str]:
    yield from ("", "| samples of | shortcut | score | chance | samples | at chance |", "|---|---|---|---|---|---|")
    for group, rows in shortcuts.items():
        for name, row in rows.items():
            verdict = "yes" if row.at_chance else "**no**"
            yield f"| {group} | {name} | {row.score:.3f} | {row.chance:.3f} | {row.samples} | {verdict} |"


def _draw_bars(counts: Mapping[str, int]) -> list[str]:
    most, width = max(counts.values()), max(len(name) for name in counts)
    return [
        f"{name:>{width}} {'#' * round(_BAR * number / max(most, 1)):<{_BAR}} {number}"
        for name, number in counts.items()
    ]
