"""Engines on exported checkpoints, one at a time, and the table of largest differences."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

# One process, so that the next engine starts in seconds; tests/test_server.py has the processes of a real server.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
REFERENCE = Path(os.environ["V2PE_REFERENCE"])
TABLE: dict[str, float] = {}  # case -> largest difference of a log-probability


@dataclass(frozen=True)
class Reference:
    """A request, and what this project's model says (tests/reference.py)."""

    name: str
    stride: float
    images: list[str]
    has_video: bool
    history: list[list[str]]
    prompt: str
    num_prompt_tokens: int
    ids: list[int]
    logprobs: list[float]
    plain_logprobs: list[float]

    def to_vllm(self, *, names_stride: bool = True) -> dict[str, Any]:
        """The request as vLLM takes it, with its stride or with that of the server."""
        data: dict[str, Any] = {}
        if self.images:
            data["image"] = [Image.open(REFERENCE / "pictures" / f"{name}.png") for name in self.images]
        if self.has_video:
            frames = sorted((REFERENCE / "pictures" / "video").iterdir())
            data["video"] = np.stack([np.asarray(Image.open(frame)) for frame in frames])
        stride = {"mm_processor_kwargs": {"rope_pos_id_stride": self.stride}} if names_stride and data else {}
        return {"prompt": self.prompt, "multi_modal_data": data, **stride} if data else {"prompt": self.prompt}


def load_references(decoder: str) -> list[Reference]:
    """All requests to a decoder."""
    return [Reference(**fields) for fields in json.loads((REFERENCE / "requests.json").read_text())[decoder]]


@dataclass
class Engines:
    """The engine that runs: another one is started when it is asked for."""

    key: object = None
    engine: Any = None
    closed: list[Any] = field(default_factory=list)

    def get(self, export: str, **options: Any) -> Any:
        """The engine of a folder below `V2PE_REFERENCE`."""
        from vllm import LLM

        key = (export, tuple(sorted(options.items())))
        if key != self.key:
            self.close()
            defaults = {"block_size": 32, "max_num_seqs": 8, "gpu_memory_utilization": 0.3}
            self.engine, self.key = (
                LLM(
                    str(REFERENCE / export),
                    dtype="float32",
                    enforce_eager=True,
                    limit_mm_per_prompt={"image": 3, "video": 1},
                    **{**defaults, **options},
                ),
                key,
            )
        return self.engine

    def close(self) -> None:
        """Give the memory of the engine back."""
        if self.engine is not None:
            self.engine.llm_engine.engine_core.shutdown()
        self.engine = self.key = None


@pytest.fixture(scope="session")
def engines() -> Iterator[Engines]:
    running = Engines()
    yield running
    running.close()


@pytest.fixture
def note() -> Callable[[str, float], float]:
    """Put a difference into the table; returns it."""

    def add(case: str, difference: float) -> float:
        TABLE[case] = max(TABLE.get(case, 0.0), difference)
        return difference

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table as Markdown, for the README."""
    if TABLE:
        terminalreporter.write_line("\n| case | largest difference |\n|---|---|")
        for case, difference in TABLE.items():
            terminalreporter.write_line(f"| {case} | {difference:.1e} |")
