"""The lmms-eval model, on the installed package (0.7.3 was tried) or on a stand-in of its interface."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from eval.bridges.manifest import make_manifest
from internvl.data.video import VideoClip
from internvl.errors import ConfigError, MissingDependencyError
from internvl.infer.session import Session
from internvl.infer.settings import GREEDY, Sampling

ROOT = Path(__file__).parents[3]


@pytest.fixture
def make_model(lmms_eval, checkpoint):
    def make(arguments="", **extra):
        text = ",".join(filter(None, (f"pretrained={checkpoint},max_num=2", arguments)))
        config = {"batch_size": 1, "max_batch_size": None, "device": "cpu", **extra}
        return lmms_eval.V2PE.create_from_arg_string(text, config)

    return make


def make_request(model, parts, *, options=None, doc_id=0):
    """A request as lmms-eval's chat interface gives it: context, maker of messages, options, place of the record."""
    model.task_dict = {"t": {"test": {doc_id: {"parts": parts}}}}
    messages = lambda doc: [{"role": "user", "content": doc["parts"]}]  # noqa: E731
    return SimpleNamespace(args=("context", messages, options or {"max_new_tokens": 4}, doc_id, "t", "test"))


def test_it_is_a_chat_model_of_lmms_eval(lmms_eval):
    from lmms_eval.api.model import lmms

    assert issubclass(lmms_eval.V2PE, lmms)
    assert not lmms_eval.V2PE.is_simple
    assert not lmms_eval.V2PE.__abstractmethods__


def test_arguments_of_the_command_line_reach_the_session(make_model):
    model = make_model("rope_pos_id_version=v2pe_fix,rope_pos_id_stride=1/4,num_frames=3")
    settings = model.session.settings
    assert (settings.rope_pos_id_version, settings.rope_pos_id_stride, settings.max_num) == ("v2pe_fix", 0.25, 2)
    assert (model.rank, model.world_size, model.batch_size, model.device.type) == (0, 1, 1, "cpu")


def test_answers_are_those_of_a_session(make_model, checkpoint, pictures):
    model = make_model("rope_pos_id_version=v2pe_fix,rope_pos_id_stride=2")
    parts = [
        {"type": "image", "url": Image.open(pictures[0])},
        {"type": "text", "text": "or"},
        {"type": "image", "url": str(pictures[1])},
        {"type": "text", "text": "Which one?"},
    ]
    [answer] = model.generate_until([make_request(model, parts)])
    session = Session.from_pretrained(
        checkpoint, device="cpu", rope_pos_id_version="v2pe_fix", rope_pos_id_stride=2, max_num=2
    )
    expected = session.answer("<image>\nor\n<image>\nWhich one?", pictures[:2], max_new_tokens=4)
    assert answer == expected.text
    assert expected.num_tiles > 2


def test_every_request_has_an_answer_and_the_hook_sees_it(make_model):
    model, seen = make_model(), []
    model.cache_hook = SimpleNamespace(add_partial=lambda *args: seen.append(args))
    request = make_request(model, [{"type": "text", "text": "q"}])
    answers = model.generate_until([request, request])
    assert len(answers) == 2
    assert answers[0] == answers[1]
    assert seen == [("generate_until", ("context", {"max_new_tokens": 4}), answers[0])] * 2


def test_stop_strings_end_an_answer(lmms_eval):
    assert lmms_eval.cut_at("one\n\ntwo###", ["###", "\n\n", ""]) == "one"
    assert lmms_eval.cut_at("one", "x") == "one"
    assert lmms_eval.cut_at("one", None) == "one"


def test_sampling_needs_a_temperature_and_no_veto(make_model, monkeypatch):
    model, seen = make_model(), []
    monkeypatch.setattr(
        Session, "ask", lambda self, *args, **options: seen.append(options) or SimpleNamespace(text="x")
    )
    for options in (
        {"temperature": 0.7, "top_p": 0.9},
        {"temperature": 0.7, "do_sample": False},
        {"temperature": None},
    ):
        model.generate_until([make_request(model, [{"type": "text", "text": "q"}], options=options)])
    assert [entry["sampling"] for entry in seen] == [Sampling(0.7, 0.9), GREEDY, GREEDY]
    assert {entry["max_new_tokens"] for entry in seen} == {1024}


def test_parts_of_videos_and_objects_are_read(lmms_eval):
    part = SimpleNamespace(type="video", url="v.mp4", start_time=1, end_time=3.5)
    whole = {"type": "video", "url": "w.mp4"}
    [message] = lmms_eval.read_messages([SimpleNamespace(role="user", content=[part, whole])])
    assert message.parts[0].content == VideoClip("v.mp4", clip=(1.0, 3.5))
    assert message.parts[1].content == "w.mp4"
    with pytest.raises(ConfigError, match="audio"):
        lmms_eval.read_messages([{"role": "user", "content": [{"type": "audio", "url": "x"}]}])


def test_what_it_cannot_do_is_refused(make_model):
    model = make_model()
    for method in (model.loglikelihood, model.generate_until_multi_round):
        with pytest.raises(ConfigError, match="generate_until"):
            method([])
    with pytest.raises(ConfigError, match="batch_size"):
        make_model(batch_size=4)


def test_the_entry_point_names_the_class(lmms_eval):
    manifest = make_manifest()
    module, name = manifest.chat_class_path.rsplit(".", 1)
    assert manifest.model_id == "v2pe"
    assert getattr(importlib.import_module(module), name) is lmms_eval.V2PE
    project = (ROOT / "pyproject.toml").read_text()
    assert '[project.entry-points."lmms_eval.models"]\nv2pe = "eval.bridges.manifest:make_manifest"\n' in project


@pytest.mark.skipif(importlib.util.find_spec("lmms_eval") is not None, reason="lmms-eval is installed")
def test_without_lmms_eval_the_module_says_what_to_install(monkeypatch):
    monkeypatch.delitem(sys.modules, "eval.bridges.lmms_eval", raising=False)
    with pytest.raises(MissingDependencyError, match="pip install lmms-eval"):
        importlib.import_module("eval.bridges.lmms_eval")
