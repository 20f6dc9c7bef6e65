"""The suites that the bridges serve: the installed package where there is one, else stand-ins of their interfaces.

The stand-ins hold what the bridges use of lmms-eval 0.7.3 (`lmms`, `ModelManifest`, the six arguments of a request) and
of VLMEvalKit at commit e8e78f05 (`BaseModel.generate`, the table `supported_VLM`), and nothing else.
"""

import abc
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image


class StandInLmms(abc.ABC):
    """lmms-eval's base class: abstract methods, a rank, a hook that caches answers, tasks by name."""

    is_simple = True

    def __init__(self):
        self._rank, self._world_size = 0, 1
        self.cache_hook = SimpleNamespace(add_partial=lambda *args: None)
        self.task_dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, text, additional_config=None):
        pairs = dict(pair.split("=", 1) for pair in text.split(","))
        return cls(**pairs, **{k: v for k, v in (additional_config or {}).items() if v is not None})

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size


@dataclass(frozen=True)
class StandInManifest:
    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class StandInBaseModel:
    """VLMEvalKit's base class: checks the types of the parts of a message and hands it on."""

    allowed_types = ["text", "image", "video"]

    def __init__(self):
        self.dump_image_func = None

    def set_dump_image(self, function):
        self.dump_image_func = function

    def use_custom_prompt(self, dataset):
        return False

    def generate(self, message, dataset=None):
        parts = [{"type": "text", "value": message}] if isinstance(message, str) else message
        assert all(part["type"] in self.allowed_types for part in parts)
        return self.generate_inner(parts, dataset)

    def chat(self, messages, dataset=None):
        return self.chat_inner(messages, dataset=dataset)


def _install(monkeypatch, modules):
    """Put modules of the given contents into place for one test, with the packages that they lie in."""
    for name, content in modules.items():
        parts = name.split(".")
        for place in range(1, len(parts) + 1):
            module = sys.modules.get(".".join(parts[:place]))
            if module is None:
                module = ModuleType(".".join(parts[:place]))
                module.__path__ = []
                monkeypatch.setitem(sys.modules, module.__name__, module)
        vars(module).update(content)


@pytest.fixture
def lmms_eval(monkeypatch):
    """`eval.bridges.lmms_eval`, on the package or on the stand-in."""
    monkeypatch.delitem(sys.modules, "eval.bridges.lmms_eval", raising=False)
    if importlib.util.find_spec("lmms_eval") is None:
        _install(
            monkeypatch,
            {
                "lmms_eval.api.model": {"lmms": StandInLmms},
                "lmms_eval.models.registry_v2": {"ModelManifest": StandInManifest},
            },
        )
    module = importlib.import_module("eval.bridges.lmms_eval")
    yield module
    sys.modules.pop("eval.bridges.lmms_eval", None)


@pytest.fixture
def vlmevalkit(monkeypatch):
    """`eval.bridges.vlmevalkit`, on the package or on the stand-in."""
    monkeypatch.delitem(sys.modules, "eval.bridges.vlmevalkit", raising=False)
    if importlib.util.find_spec("vlmeval") is None:
        _install(
            monkeypatch,
            {"vlmeval.vlm.base": {"BaseModel": StandInBaseModel}, "vlmeval.config": {"supported_VLM": {"Known": None}}},
        )
    module = importlib.import_module("eval.bridges.vlmevalkit")
    yield module
    sys.modules.pop("eval.bridges.vlmevalkit", None)


@pytest.fixture
def pictures(tmp_path):
    """Three picture files of different shapes."""
    paths = []
    for index, size in enumerate(((28, 28), (28, 84), (56, 28))):
        paths.append(tmp_path / f"{index}.png")
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    return paths
