"""Config files: the options of a command in a YAML or JSON file.

    # my_run.yaml
    base: internvl2_2b_32k           # another file, without .yaml: one beside this file, or a recipe of examples/
    learning_rate: 1e-5              # --learning_rate 1e-5
    rope_pos_id_random_strides: [1, 4, 16]
    use_thumbnail: true
    max_steps: null                  # as if nobody had said anything: the command's own default

Keys are the names of options. A file's own keys decide over those of its base.
"""

import argparse
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import yaml

from internvl.errors import ConfigError, did_you_mean
from internvl.shipped import find_shipped

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
RECIPES = find_shipped("examples")
_BASE = "base"
_MAX_BASES = 20


class _Loader(yaml.SafeLoader):
    """YAML 1.2's plain values, in which `no` and `on` are words and 1e-5 is a number; keys are texts, each once."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[object, object]:
        keys = [key.value for key, _ in node.value]
        if doubled := {key for key in keys if keys.count(key) > 1}:
            raise yaml.YAMLError(f"it says {', '.join(sorted(doubled))} twice{node.start_mark}")
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                key.tag = yaml.resolver.BaseResolver.DEFAULT_SCALAR_TAG  # a column may be called 2020
        return super().construct_mapping(node, deep)


for _kind, _pattern, _first in (
    ("null", r"~|null|", [*"~n", ""]),
    ("bool", r"true|false|True|False", list("tfTF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(rf"\A({_pattern})\Z"), _first)


def read_config(path: Path) -> dict[str, object]:
    """The options of a file, or else of the recipe of this name (`tiny.yaml`, `examples/tiny.yaml`), bases included.

    Raises:
        ConfigError: A file is missing or not a mapping, or bases go round in a circle.
    """
    layers: list[dict[str, object]] = []
    path = next((place for place in (path, RECIPES / path, RECIPES.parent / path) if place.exists()), path)
    while len(layers) < _MAX_BASES:
        values = _read_mapping(path)
        base = values.pop(_BASE, None)
        layers.append(values)
        if base is None:
            return {key: value for layer in reversed(layers) for key, value in layer.items()}
        path = _find_base(str(base), path)
    raise ConfigError(
        f"{path}: more than {_MAX_BASES} files say `{_BASE}` one after the other; do they go in a circle?"
    )


def _read_mapping(path: Path) -> dict[str, object]:
    kind = "json" if path.suffix == ".json" else "YAML"
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = json.loads(text) if kind == "json" else yaml.load(text, _Loader)
    except FileNotFoundError:
        known = {found.name for folder in (path.parent, RECIPES) for found in folder.glob(f"*{path.suffix}")}
        raise ConfigError(
            f"{path}: no such file{did_you_mean(path.name, known)} (current folder: {Path.cwd()})"
        ) from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not {kind}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(f"{path}: expected options and their values, got {type(values).__name__}")
    return values


def _find_base(name: str, path: Path) -> Path:
    beside = path.parent / name
    places = [place for place in (beside, *(Path(f"{p}.yaml") for p in (beside, RECIPES / name))) if place.is_file()]
    if not places:
        known = {found.stem for folder in (path.parent, RECIPES) for found in folder.glob("*.yaml")}
        raise ConfigError(
            f"{path}: {_BASE} is {name!r}, which is no file beside it and no recipe{did_you_mean(name, known)}"
        )
    return places[0]


def write_flags(values: Mapping[str, object], actions: Iterable[argparse.Action], *, where: str) -> list[str]:
    """Words of a command line that say the same as `values`; null says nothing.

    Raises:
        ConfigError: A key is no option, or a value has a form that no option takes; the message begins with `where`.
    """
    by_name = {action.dest: action for action in actions if action.option_strings and action.dest != "help"}
    words: list[str] = []
    for key, value in values.items():
        if key not in by_name:
            raise ConfigError(f"{where}: unknown option {key!r}{did_you_mean(key, by_name)}")
        action, flag = by_name[key], max(by_name[key].option_strings, key=len)
        if action.nargs == 0:
            if str(value).lower() not in ("true", "false", "none"):
                raise ConfigError(f"{where}: {key} is {value!r}, expected true or false")
            words += [flag] if str(value).lower() == "true" else []
        elif isinstance(value, list) and action.nargs in ("*", "+"):
            words += [flag, *map(str, value)]
        elif isinstance(value, str) and action.nargs in ("*", "+"):
            words += [flag, *value.split()]
        elif isinstance(value, list):
            raise ConfigError(f"{where}: {key} takes one value, got the list {value}")
        elif value is not None:
            words.append(f"{flag}={json.dumps(value) if isinstance(value, dict) else value}")
    return words
