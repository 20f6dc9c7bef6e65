"""The VLMEvalKit model, on the installed package or on a stand-in of its interface (commit e8e78f05)."""

import importlib
import importlib.util
import sys

import pytest

from internvl.errors import ConfigError, MissingDependencyError
from internvl.infer.session import Session

OPTIONS = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": "1/2", "max_num": 2, "device": "cpu"}


@pytest.fixture
def model(vlmevalkit, checkpoint):
    return vlmevalkit.V2PE(str(checkpoint), max_new_tokens=4, **OPTIONS)


def test_answers_are_those_of_a_session(model, checkpoint, pictures):
    message = [
        {"type": "image", "value": str(pictures[0])},
        {"type": "image", "value": str(pictures[2])},
        {"type": "text", "value": "Which one?"},
    ]
    session = Session.from_pretrained(checkpoint, **{**OPTIONS, "rope_pos_id_stride": 0.5})
    expected = session.answer("<image>\n<image>\nWhich one?", [pictures[0], pictures[2]], max_new_tokens=4)
    assert model.generate(message, dataset="MMBench") == expected.text
    assert (expected.num_tiles, model.session.settings.rope_pos_id_stride) == (4, 0.5)


def test_text_alone_is_a_message(model):
    assert isinstance(model.generate("What is it?"), str)


def test_system_parts_replace_the_system_message(model, monkeypatch):
    seen = []
    original = Session.ask
    monkeypatch.setattr(
        Session, "ask", lambda self, asked, **options: seen.append(asked) or original(self, asked, **options)
    )
    model.generate([{"type": "text", "value": "Be brief.", "role": "system"}, {"type": "text", "value": "q"}])
    assert seen[0].system_message == "Be brief."


def test_a_conversation_keeps_its_turns(model, pictures):
    turns = [
        {"role": "user", "content": [{"type": "image", "value": str(pictures[0])}, {"type": "text", "value": "one?"}]},
        {"role": "assistant", "content": [{"type": "text", "value": "yes"}]},
        {"role": "user", "content": [{"type": "text", "value": "two?"}]},
    ]
    expected = model.session.answer("two?", [pictures[0]], history=[("<image>\none?", "yes")], max_new_tokens=4)
    assert model.chat(turns) == expected.text


def test_it_takes_interleaved_messages_and_videos(vlmevalkit):
    assert vlmevalkit.V2PE.INTERLEAVE
    assert vlmevalkit.V2PE.VIDEO_LLM


def test_it_is_registered_once_and_made_when_asked_for(vlmevalkit, checkpoint):
    from vlmeval.config import supported_VLM

    vlmevalkit.register("V2PE-half", pretrained=str(checkpoint), **OPTIONS)
    assert supported_VLM["V2PE-half"]().session.settings.rope_pos_id_stride == 0.5
    with pytest.raises(ConfigError, match="already"):
        vlmevalkit.register("V2PE-half", pretrained="x")
    del supported_VLM["V2PE-half"]


def test_unknown_options_and_parts_are_refused(vlmevalkit, model, checkpoint):
    with pytest.raises(ConfigError, match="stride"):
        vlmevalkit.V2PE(str(checkpoint), strides=4)
    with pytest.raises(ConfigError, match="audio"):
        model.generate_inner([{"type": "audio", "value": "x"}])


def test_the_command_registers_and_starts_the_script(vlmevalkit, checkpoint, tmp_path, monkeypatch, capsys):
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom vlmeval.config import supported_VLM\n"
        "print(sys.argv[1:], supported_VLM[sys.argv[-1]].keywords['rope_pos_id_stride'])\n"
    )
    monkeypatch.setattr(sys, "argv", ["x"])
    command = ["--name", "V2PE-s", "--pretrained", str(checkpoint), "--rope_pos_id_stride", "1/2"]
    assert vlmevalkit.main([*command, "--", str(script), "--data", "X", "--model", "V2PE-s"]) == 0
    assert capsys.readouterr().out.strip() == "['--data', 'X', '--model', 'V2PE-s'] 0.5"
    assert vlmevalkit.main([*command, "--", str(tmp_path / "gone.py")]) == 2
    assert "not found" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("vlmeval") is not None, reason="VLMEvalKit is installed")
def test_without_vlmevalkit_the_module_says_where_to_get_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "eval.bridges.vlmevalkit", raising=False)
    with pytest.raises(MissingDependencyError, match="VLMEvalKit"):
        importlib.import_module("eval.bridges.vlmevalkit")
