"""Prediction store: appends answers to disk as they come, survives being killed, and never mixes settings.

    FOLDER/settings.json             what the predictions were made with
    FOLDER/parts/RANK-of-WORLD.jsonl one line per answer, appended and flushed at once
    FOLDER/predictions.jsonl         every sample once, in the order of the samples; exists when the task is done

A later run reads every part, whatever its rank and world size were, and asks only the open questions. A failed sample
has a line too; when it is tried again, the new line counts instead.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from eval.core.output import LineWriter, cut_unfinished_line, write_result
from eval.core.records import JsonObject
from eval.core.result import (
    PREDICTIONS_NAME,
    SETTINGS_NAME,
    name_first,
    read_prediction_lines,
    read_settings,
    refuse_lines,
)
from eval.core.sample import Prediction, Sample
from internvl.errors import EvalError


def make_fingerprint(settings: JsonObject) -> str:
    """Short hash of settings: two settings are equal exactly when their hashes are."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class PredictionStore:
    """The predictions of one task under one setting.

    `settings` are JSON values that answers depend on. Answers do not depend on the others: `info` holds paths for
    readers, `num_samples` is the number of questions, and `length_bins` are the context lengths that scores are cut at.
    """

    def __init__(
        self,
        folder: Path,
        settings: JsonObject,
        info: Mapping[str, str] | None = None,
        *,
        num_samples: int | None = None,
        length_bins: Sequence[int] | None = None,
    ):
        self.folder = folder
        self.settings = dict(settings)
        self.info = dict(info or {})
        self.num_samples, self.length_bins = num_samples, length_bins
        self.fingerprint = make_fingerprint(self.settings)

    @property
    def merged_path(self) -> Path:
        """The finished predictions file."""
        return self.folder / PREDICTIONS_NAME

    def check(self) -> None:
        """Refuse predictions of other settings; changes nothing. Raises EvalError that names every difference."""
        if not self._holds_predictions():
            return
        saved = read_settings(self.folder).settings.values
        names = sorted(saved.keys() | self.settings.keys())
        differences = [
            f"{name}: saved {saved.get(name)!r}, asked {self.settings.get(name)!r}"
            for name in names
            if saved.get(name) != self.settings.get(name)
        ]
        if differences:
            raise EvalError(
                f"{self.folder} holds predictions made with other settings ({'; '.join(differences)}); "
                "choose another --out, or pass --overwrite to throw them away"
            )

    def prepare(self, *, overwrite: bool = False) -> None:
        """Make the folder ready for appending: unfinished last lines, which a killed run leaves, are cut off.

        One process calls this, before any other reads or writes.
        """
        if overwrite or not self._holds_predictions():
            for path in [*self._list_parts(), self.merged_path]:
                path.unlink(missing_ok=True)
        for path in self._list_parts():
            cut_unfinished_line(path)
        content = {
            "fingerprint": self.fingerprint,
            "settings": self.settings,
            "info": self.info,
            "num_samples": self.num_samples,
            "length_bins": self.length_bins,
        }
        write_result(self.folder / SETTINGS_NAME, json.dumps(content, indent=2) + "\n")
        (self.folder / "parts").mkdir(exist_ok=True)

    def read(self) -> dict[str, Prediction]:
        """All predictions so far by id, without unfinished last lines. Lines that did not fail replace failed ones.

        Raises EvalError that names the lines that are broken, were made with other settings, or answer a question
        for a second time and differently.
        """
        predictions: dict[str, Prediction] = {}
        for path in self._list_parts():
            problems: list[str] = []
            for number, prediction, fingerprint in read_prediction_lines(path, problems):
                earlier = predictions.get(prediction.id)
                if fingerprint != self.fingerprint:
                    problems.append(f"line {number} was made with other settings")
                elif earlier is not None and prediction.failure is not None:
                    continue
                elif earlier is not None and earlier.failure is None and not earlier.is_same_answer(prediction):
                    problems.append(f"line {number}: sample {prediction.id!r} was answered twice")
                else:
                    predictions[prediction.id] = prediction
            refuse_lines(path, problems, "delete these lines and start again, or pass --overwrite")
        return predictions

    def open_part(self, rank: int, world_size: int, *, member: int = 0) -> "PartWriter":
        """A writer for one rank, or for a further process of its group. The file is created with the first line."""
        suffix = f"-{member}" if member else ""
        return PartWriter(self.folder / "parts" / f"{rank:04d}-of-{world_size:04d}{suffix}.jsonl", self.fingerprint)

    def merge(self, samples: Sequence[Sample]) -> list[Prediction]:
        """Write `predictions.jsonl`: every sample once, in order. Raises EvalError if samples have no answer."""
        predictions = self.read()
        missing = [sample.id for sample in samples if sample.id not in predictions]
        if missing:
            raise EvalError(
                f"{self.folder}: {len(missing)} of {len(samples)} samples have no answer ({name_first(missing)}); "
                "start the same command again to continue"
            )
        merged = [predictions[sample.id] for sample in samples]
        lines = (json.dumps(prediction.to_record()) + "\n" for prediction in merged)
        write_result(self.merged_path, "".join(lines))
        return merged

    def _list_parts(self) -> list[Path]:
        return sorted((self.folder / "parts").glob("*-of-*.jsonl"))

    def _holds_predictions(self) -> bool:
        return self.merged_path.exists() or any(b"\n" in path.read_bytes() for path in self._list_parts())


class PartWriter:
    """Appends predictions to one file. Each line is on disk before the next question is asked."""

    def __init__(self, path: Path, fingerprint: str):
        self.path, self._fingerprint, self._lines = path, fingerprint, LineWriter(path)

    def append(self, prediction: Prediction) -> None:
        """Write one line whole or not at all. Raises EvalError if it cannot be written (disk full, no permission)."""
        self._lines.append({**prediction.to_record(), "fingerprint": self._fingerprint})

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
