"""Bar charts with questions, for models that a CPU can train: which bar is the highest, which the lowest.

    python -m internvl.synth.miniature.charts --out dataset --tokenizer pretrained/InternVL2-Tiny

    dataset/annotation/charts_NAME/{train_charts.jsonl, meta.json}    V2PE-Data's form, two questions a chart
    dataset/image/charts_NAME/
    dataset/benchmark/chartqa/                                in ChartQA's form: task vqa/chartqa-test-augmented

Questions refer to bars by height, answers are their colours. A picture is two tiles wide and one high. Training and
test have different charts. The same arguments give the same files.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw
from tqdm import tqdm

from internvl.command import command
from internvl.errors import ConfigError
from internvl.model.constants import IMAGE_PLACEHOLDER
from internvl.model.loading import read_chat_config
from internvl.synth.command import make_data_root_parser, run_builder
from internvl.synth.folders import Facts, Origin, make_folders
from internvl.synth.forms import Record, Split, describe_source, write_lines, write_meta, write_turns
from internvl.synth.miniature.vocabulary import BAR_COLORS, EXTREMES, ask_bar
from internvl.synth.questions import SHORT_ANSWER_SENTENCE

BUILDER = "internvl.synth.miniature.charts"
BENCHMARK_FOLDER = Path("benchmark", "chartqa")
NUM_BARS = (3, 5)
MAX_NUM = 6  # most tiles per picture; two are what comes out
_LOWEST, _LEAST_STEP = 0.1, 0.12  # shares of the picture's height: the lowest bar, the step between two bars


@dataclass(frozen=True)
class Chart:
    """Bars from left to right."""

    colors: tuple[str, ...]  # names, keys of `BAR_COLORS`
    heights: tuple[float, ...]  # shares of the picture's height

    @property
    def questions(self) -> list[tuple[str, str]]:
        """(question, answer) for the highest and for the lowest bar."""
        bars = sorted(zip(self.heights, self.colors, strict=True))
        return list(zip(map(ask_bar, EXTREMES), (bars[-1][1], bars[0][1]), strict=True))


def make_chart(rng: Random) -> Chart:
    """Random bars of different colours; the heights of any two differ visibly."""
    number = rng.randint(*NUM_BARS)
    spare = 1 - _LOWEST - _LEAST_STEP * number
    offsets = sorted(rng.uniform(0, spare) for _ in range(number))
    heights = [_LOWEST + offset + _LEAST_STEP * place for place, offset in enumerate(offsets)]
    rng.shuffle(heights)
    return Chart(tuple(rng.sample(list(BAR_COLORS), number)), tuple(heights))


def draw_chart(chart: Chart, *, tile: int) -> Image.Image:
    """A chart with its axis on white, 2 * `tile` x `tile` pixels."""
    width, ground = 2 * tile, tile - 3
    image = Image.new("RGB", (width, tile), "white")
    draw = ImageDraw.Draw(image)
    slot = width / len(chart.colors)
    for place, (color, height) in enumerate(zip(chart.colors, chart.heights, strict=True)):
        left, right = round((place + 0.15) * slot), round((place + 0.85) * slot)
        draw.rectangle((left, round((1 - height) * ground), right, ground), fill=BAR_COLORS[color])
    draw.line((0, ground + 1, width, ground + 1), fill="black", width=2)
    return image


@dataclass(frozen=True)
class ChartSpec:
    """The whole data set."""

    name: str  # folders are called `charts_<name>`
    seed: int
    num_train: int  # charts for training; 0 makes no training data
    num_test: int  # charts for testing; 0 makes no test data
    tile: int  # side of a tile in pixels

    def __post_init__(self) -> None:
        for name in ("num_train", "num_test"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if not self.folders:
            raise ConfigError("nothing to make; set num_train or num_test")

    @property
    def annotation_folder(self) -> Path:
        """Training annotations, relative to the data root."""
        return Path("annotation", f"charts_{self.name}")

    @property
    def image_folder(self) -> Path:
        """Training pictures, relative to the data root."""
        return Path("image", f"charts_{self.name}")

    @property
    def folders(self) -> tuple[Path, ...]:
        """What is made; annotations come last."""
        train = (self.image_folder, self.annotation_folder) if self.num_train else ()
        return (*((BENCHMARK_FOLDER,) if self.num_test else ()), *train)


def build_charts(out: Path, spec: ChartSpec, *, overwrite: bool = False) -> bool:
    """Make the data set below `out`; returns False when it was there already.

    Raises DataError if a folder is in the way that this builder may not replace.
    """

    def write(staging: Path) -> Facts:
        if spec.num_train:
            _build_train(staging, spec)
        if spec.num_test:
            _build_test(staging / BENCHMARK_FOLDER, spec)
        return {}

    return make_folders(out, spec.folders, Origin.of(BUILDER, asdict(spec)), write, overwrite=overwrite)


def _build_train(staging: Path, spec: ChartSpec) -> None:
    annotations = staging / spec.annotation_folder
    file = "train_charts.jsonl"
    rng = Random(f"{spec.seed}/order of questions")
    charts = enumerate(_draw_charts(staging / spec.image_folder, spec, "train"))
    records = (
        {"id": f"charts-{index:06d}", "image": path, "conversations": _ask(chart, rng)}
        for index, (path, chart) in charts
    )
    write_lines(annotations / file, records)
    source = describe_source(
        root=spec.image_folder.as_posix(),
        annotation=(spec.annotation_folder / file).as_posix(),
        num_samples=spec.num_train,
        max_num=MAX_NUM,
    )
    write_meta(annotations / "meta.json", {"train_charts": source})


def _ask(chart: Chart, rng: Random) -> list[dict[str, str]]:
    """Both questions as ChartQA's task asks them, in random order: in a fixed one a model learns the turn instead."""
    asked = rng.sample(chart.questions, len(chart.questions))
    questions = ((f"{question} {SHORT_ANSWER_SENTENCE}", answer) for question, answer in asked)
    return write_turns(f"{IMAGE_PLACEHOLDER}\n", questions)


def _build_test(folder: Path, spec: ChartSpec) -> None:
    asked = ((path, *pair) for path, chart in _draw_charts(folder, spec, "test") for pair in chart.questions)
    records: Iterator[Record] = (
        {"image": f"data/chartqa/{path}", "question": question, "question_id": index, "answer": answer}
        for index, (path, question, answer) in enumerate(asked)
    )
    write_lines(folder / "test_augmented.jsonl", records)


def _draw_charts(folder: Path, spec: ChartSpec, split: Split) -> Iterator[tuple[str, Chart]]:
    """Write the pictures of a split; yields their paths below `folder`."""
    rng = Random(f"{spec.seed}/{split}")
    number = spec.num_train if split == "train" else spec.num_test
    (folder / "png").mkdir()
    for index in tqdm(range(number), desc=f"{split} charts", unit="chart", mininterval=0.5):
        chart = make_chart(rng)
        path = f"png/{index:05d}.png"
        draw_chart(chart, tile=spec.tile).save(folder / path, compress_level=1)
        yield path, chart


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = make_data_root_parser(BUILDER, __doc__, name="charts_NAME", reads="tile size is used")
    add = parser.add_argument
    add("--num_train", type=int, default=4000, help="charts for training; 0 makes none (default: %(default)s)")
    add("--num_test", type=int, default=100, help="charts for testing; 0 makes none (default: %(default)s)")
    return parser


def build(arguments: argparse.Namespace) -> tuple[bool, list[Path]]:
    """Make the data set that a command line asks for."""
    tile = read_chat_config(arguments.tokenizer).image_size
    spec = ChartSpec(arguments.name, arguments.seed, arguments.num_train, arguments.num_test, tile)
    made = build_charts(arguments.out, spec, overwrite=arguments.overwrite)
    return made, [arguments.out / folder for folder in spec.folders]


@command(go_on="start the same command again; nothing was left half-written")
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    return run_builder(build_parser(), argv, build)


if __name__ == "__main__":
    sys.exit(main())
