"""`--logn_scaling` in sessions and in the chat: the flag wins over the config, answers reuse prompts as without it."""

import json
import shutil

import pytest

from internvl.infer.chat import main
from internvl.infer.session import Session

PROMPT = "Which of the words that stand here is the longest one?"


def answer(checkpoint, prompt=PROMPT, **options):
    return Session.from_pretrained(checkpoint, **options).answer(prompt, max_new_tokens=12).text


@pytest.fixture
def scaled(checkpoint, tmp_path):
    """The same checkpoint with a config that says so."""
    folder = shutil.copytree(checkpoint, tmp_path / "scaled")
    config = json.loads((folder / "config.json").read_text())
    config["llm_config"]["logn_scaling"] = 2
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_flag_and_config_say_the_same(checkpoint, scaled):
    plain = answer(checkpoint)
    assert answer(scaled) == answer(checkpoint, logn_scaling=2) != plain
    assert answer(scaled, logn_scaling=0) == answer(checkpoint, logn_scaling=100_000) == plain


def test_kept_prompts_change_nothing(scaled):
    keeping = Session.from_pretrained(scaled, reuse_prefix=True)
    for ending in (" Say it.", " Spell it.", " Say it."):
        prompt = PROMPT * 3 + ending
        assert keeping.answer(prompt, max_new_tokens=12).text == answer(scaled, prompt)


def test_the_chat_passes_the_flag_on(checkpoint, capsys):
    arguments = ["--checkpoint", str(checkpoint), "--device", "cpu", "--max_new_tokens", "12"]
    assert main([*arguments, "--logn_scaling", "2", PROMPT]) == 0
    assert capsys.readouterr().out.strip() == answer(checkpoint, logn_scaling=2).strip()
    assert main([*arguments, "--logn_scaling", "1", PROMPT]) == 2
    assert "--logn_scaling is 1, expected the number of tokens" in capsys.readouterr().err
