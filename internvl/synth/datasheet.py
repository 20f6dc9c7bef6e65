"""What a builder made, for people (datasheet.md) and programs (datasheet.json)."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from internvl.synth.corpus.lengths import LengthRange
from internvl.synth.folders import write_datasheet
from internvl.synth.quality import Probe, score_shortcuts

NUM_DEPTHS = 10
_NUM_LENGTHS = 10
_BAR = 40  # characters


@dataclass
class _FileFacts:
    lengths: list[int] = field(default_factory=list)
    deviations: list[float] = field(default_factory=list)
    depths: list[float] = field(default_factory=list)


class Sheet:
    """Collects facts about samples; `write` puts them into a folder."""

    def __init__(self) -> None:
        self._files: dict[str, _FileFacts] = defaultdict(_FileFacts)
        self._probes: list[Probe] = []
        self.checks: Counter[str] = Counter()

    def note(self, file: str, *, length: int, asked: LengthRange, depths: Sequence[float], probe: Probe) -> None:
        """Count one sample.

        Args:
            file: Its file.
            length: Tokens that it has.
            asked: Tokens that it was to have.
            depths: Depths of what it asks for.
            probe: What shortcuts say to it.
        """
        facts = self._files[file]
        facts.lengths.append(length)
        facts.deviations.append(max(asked.low / length, length / asked.high, 1.0) - 1.0)
        facts.depths += depths
        self._probes.append(probe)

    def describe(self) -> dict[str, Any]:
        """Counts, lengths, depths and checks as JSON values."""
        shortcuts = score_shortcuts(self._probes)
        return {
            "files": {name: _describe_file(facts) for name, facts in sorted(self._files.items())},
            "checks": {
                **{name: int(number) for name, number in sorted(self.checks.items())},
                "shortcuts": shortcuts,
                "all_shortcuts_at_chance": all(
                    row["at_chance"] for rows in shortcuts.values() for row in rows.values()
                ),
            },
        }

    def write(
        self, folder: Path, *, title: str, builder: str, arguments: Mapping[str, Any], notes: Sequence[str]
    ) -> None:
        """Write datasheet.json and datasheet.md."""
        facts = self.describe()
        sheet = {"builder": builder, "arguments": dict(arguments), "notes": list(notes), **facts}
        write_datasheet(folder, sheet)
        (folder / "datasheet.md").write_text(_write_markdown(title, sheet), encoding="utf-8")


def _describe_file(facts: _FileFacts) -> dict[str, Any]:
    lengths = facts.lengths
    return {
        "samples": len(lengths),
        "tokens": {"least": min(lengths), "mean": round(sum(lengths) / len(lengths)), "most": max(lengths)},
        "largest_deviation": round(max(facts.deviations), 5),
        "length_histogram": _bin_lengths(lengths),
        "depth_histogram": [
            sum(min(int(depth * NUM_DEPTHS), NUM_DEPTHS - 1) == cell for depth in facts.depths)
            for cell in range(NUM_DEPTHS)
        ],
    }


def _bin_lengths(lengths: Sequence[int]) -> dict[str, int]:
    """Samples by length, in equal bins from the shortest to the longest; the key is a bin's left edge."""
    least, most = min(lengths), max(lengths)
    width = max((most - least) / _NUM_LENGTHS, 1)
    cells = Counter(min(int((length - least) / width), _NUM_LENGTHS - 1) for length in lengths)
    return {str(round(least + cell * width)): cells[cell] for cell in sorted(cells)}


def _write_markdown(title: str, sheet: Mapping[str, Any]) -> str:
    lines = [f"# {title}", "", f"Made by `python -m {sheet['builder']}`.", ""]
    lines += [f"- {note}" for note in sheet["notes"]]
    lines += ["", "## Settings", "", *(f"- {name}: {value}" for name, value in sheet["arguments"].items())]
    lines += ["", "## Samples", "", "| file | samples | least | mean | most tokens | outside of the asked length |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, facts in sheet["files"].items():
        tokens = facts["tokens"]
        numbers = f"{facts['samples']} | {tokens['least']} | {tokens['mean']} | {tokens['most']}"
        lines.append(f"| {name} | {numbers} | {facts['largest_deviation']:.2%} |")
    for name, facts in sheet["files"].items():
        depths = {f"{cell / NUM_DEPTHS:.1f}": number for cell, number in enumerate(facts["depth_histogram"])}
        lines += ["", f"### {name}", "", "Tokens from", "", "```", *_draw_bars(facts["length_histogram"]), "```"]
        lines += ["", "Depth from", "", "```", *_draw_bars(depths), "```"]
    lines += ["", "## Checks", ""]
    checks = dict(sheet["checks"])
    shortcuts = checks.pop("shortcuts")
    lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in checks.items()]
    lines += ["", "| samples of | shortcut | score | chance | samples | at chance |", "|---|---|---|---|---|---|"]
    for group, rows in shortcuts.items():
        for shortcut, row in rows.items():
            verdict = "yes" if row["at_chance"] else "**no**"
            lines.append(
                f"| {group} | {shortcut} | {row['score']:.3f} | {row['chance']:.3f} | {row['samples']} | {verdict} |"
            )
    return "\n".join(lines) + "\n"


def _draw_bars(counts: Mapping[str, int]) -> list[str]:
    most, width = max(counts.values()), max(len(name) for name in counts)
    return [
        f"{name:>{width}} {'#' * round(_BAR * number / max(most, 1)):<{_BAR}} {number}"
        for name, number in counts.items()
    ]
