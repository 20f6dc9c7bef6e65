"""Pushing to a double of the hub: what arrives, what the card says, errors, and a push that broke off."""

import hashlib
import json
import shutil

import huggingface_hub
import pytest
import yaml
from huggingface_hub import constants

from internvl.infer.checkpoint import fingerprint_checkpoint
from internvl.tools import export_hub
from internvl.tools.make_tiny import TinySpec, make_checkpoint
from tests.tools.hub import Repository, start_hub

RUN = {
    "arguments": {
        "model": {"model_name_or_path": "/data/secret/base", "freeze_llm": False, "chunk_num": 1},
        "data": {"rope_pos_id_version": "v2pe_rnd", "rope_pos_id_random_strides": [1, 0.25], "meta_path": "/secret"},
        "training": {"learning_rate": 4e-05, "max_steps": 20, "seed": 7, "output_dir": "/secret/out"},
    },
    "model_path": "/cache/hub/models--OpenGVLab--InternVL2-2B/snapshots/0123",
    "world_size": 8,
    "device": "NVIDIA H100",
    "versions": {"v2pe": "0.2.0", "torch": "2.13.0"},
    "data": {"meta": "abc", "sources": {"charts": {"annotation": "/secret/a.jsonl"}}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with its record, states of training, and a result."""
    folder = tmp_path_factory.mktemp("hub")
    checkpoint = folder / "run"
    make_checkpoint(checkpoint, TinySpec())
    config = json.loads((checkpoint / "config.json").read_text())
    config |= {"rope_pos_id_version": "v2pe_rnd"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    for name in (
        "trainer_state.json",
        "complete.json",
        "training_args.bin",
        "optimizer.pt",
        "run.yaml",
        "skipped.jsonl",
    ):
        (checkpoint / name).write_text("/secret")
    (checkpoint / "run.json").write_text(json.dumps(RUN))
    (checkpoint / "summary.json").write_text(json.dumps({"steps": 20, "tokens": 1234567.0, "final_loss": 1.5}))
    numbers = {"score": 0.75, "stderr": 0.0685, "count": 40, "num_failed": 0, "num_empty": 0, "chance": 0.1}
    settings = {"rope_pos_id_version": "v2pe_fix", "rope_pos_id_stride": 16, "task": "vqa/chartqa"}
    scores = {
        "task": "vqa/chartqa", "version": 1, "source": "https://example.org", "protocol": "relaxed",
        "settings": settings | {"checkpoint": fingerprint_checkpoint(checkpoint)}, "results": {"relaxed": numbers},
    }  # fmt: skip
    place = folder / "eval" / "vqa" / "chartqa"
    place.mkdir(parents=True)
    (place / "scores.json").write_text(json.dumps(scores))
    return folder


@pytest.fixture
def run(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "hub")
    return tmp_path / "hub" / "run"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with start_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(huggingface_hub.utils._http.time, "sleep", lambda seconds: None)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield hub


def push(run, *options):
    return export_hub.main([str(run), "--repo_id", "me/model", *options])


def test_what_loading_needs_arrives_in_a_private_repository(run, hub, capsys):
    assert push(run) == 0
    held = hub.repositories["me/model"]
    assert held.private
    assert held.files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert held.files["config.json"] == (run / "config.json").read_bytes()
    code = {path.name for path in run.glob("*.py")}
    tokenizer = {"tokenizer.model", "tokenizer_config.json", "added_tokens.json"}
    assert {"README.md", "generation_config.json", *code, *tokenizer} <= set(held.files)
    assert not any(b"/secret" in content for content in held.files.values())
    assert capsys.readouterr().out == f"{hub.address}/me/model/commit/1\n"


def test_a_pushed_model_loads_with_its_own_code(run, hub, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    assert push(run) == 0
    copy = tmp_path / "downloaded"
    copy.mkdir()
    for name, content in hub.repositories["me/model"].files.items():
        (copy / name).write_bytes(content)
    model = AutoModel.from_pretrained(copy, trust_remote_code=True, dtype="auto").eval()
    assert model.config.rope_pos_id_version == "v2pe_rnd"
    assert AutoTokenizer.from_pretrained(copy, trust_remote_code=True)("a").input_ids


def test_a_dry_run_shows_card_and_files_and_sends_nothing(run, hub, capsys, caplog):
    options = ("--dry_run", "--scores", str(run.parent / "eval"), "--license", "mit")
    with caplog.at_level("INFO"):
        assert push(run, *options) == 0
    assert not hub.asked
    assert "model.safetensors" in caplog.text
    assert "optimizer.pt" not in caplog.text
    _, head, card = capsys.readouterr().out.split("---\n", 2)
    metadata = yaml.safe_load(head)
    assert metadata["base_model"] == "OpenGVLab/InternVL2-2B"
    assert metadata["license"] == "mit"
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "relaxed", "value": 0.75, "name": "relaxed, V2PE stride 16"}]
    for text in (
        "| positions (`rope_pos_id_version`) | `v2pe_rnd` |",
        "| `rope_pos_id_random_strides` | 1, 0.25 |",
        "| `learning_rate` | 4e-05 |",
        "| processes, device | 8, NVIDIA H100 |",
        "| data sets | `charts` |",
        "| tokens | 1,234,567 |",
        "| `vqa/chartqa` | V2PE stride 16 | relaxed | 0.750 ± 0.069 | 0.598 to 0.858 | 40 | 0.100 |",
        "trust_remote_code=True",
        "v2pe serve model",
        "Weights: `mit`.",
    ):
        assert text in card
    assert "/secret" not in card


def test_a_card_names_the_export_to_vllm_only_where_there_is_one(run, hub, capsys):
    shown = {}
    for version in ("v2pe_rnd", "mrope"):
        config = json.loads((run / "config.json").read_text()) | {"rope_pos_id_version": version}
        (run / "config.json").write_text(json.dumps(config))
        assert push(run, "--dry_run") == 0
        shown[version] = "v2pe export vllm" in capsys.readouterr().out
    assert shown == {"v2pe_rnd": True, "mrope": False}


def test_a_card_of_ones_own_takes_the_place(run, hub, tmp_path):
    (tmp_path / "card.md").write_text("# Mine\n")
    assert push(run, "--card", str(tmp_path / "card.md"), "--public") == 0
    assert hub.repositories["me/model"].files["README.md"] == b"# Mine\n"
    assert not hub.repositories["me/model"].private


def test_a_second_push_replaces_weights_under_other_names(run, hub):
    stale = {"model-00001-of-00002.safetensors": b"", "model.safetensors.index.json": b"", "notes.txt": b"mine"}
    hub.repositories["me/model"] = Repository(private=True, files=stale)
    assert push(run) == 0
    held = hub.repositories["me/model"].files
    assert {name for name in held if "model" in name and "safetensors" in name} == {"model.safetensors"}
    assert held["notes.txt"] == b"mine"


def test_after_an_outage_the_same_command_sends_what_is_missing(run, hub, capsys):
    hub.faults = {r"^PUT /large/": 500}
    assert push(run) == 2
    assert "the hub failed (500) before me/model was complete; start the same command again" in capsys.readouterr().err
    assert not hub.repositories["me/model"].files
    weights = hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest()
    hub.faults = {rf"^PUT /large/{weights}": 500}
    assert push(run) == 2
    hub.faults, hub.asked = {}, []
    assert push(run) == 0
    assert [line for line in hub.asked if line.startswith("PUT")] == [f"PUT /large/{weights}"]
    assert "model.safetensors" in hub.repositories["me/model"].files


@pytest.mark.parametrize(
    ("faults", "line"),
    [
        ({"create": 401}, "the hub does not take the token (401)"),
        ({"create": 403}, "the token may not write to me/model (403)"),
        ({"preupload": 403}, "the token may not write to me/model (403)"),
        ({"commit": 409}, "me/model was changed meanwhile (409); start the same command again"),
        ({"create": 500}, "the hub failed (500) before me/model was complete; start the same command again"),
        ({"validate": 400}, "the hub refuses what was sent (400)"),
    ],
)
def test_a_refusal_is_one_line(run, hub, capsys, faults, line):
    hub.faults = faults
    assert push(run) == 2
    written = capsys.readouterr().err.splitlines()[-1]
    assert line in written
    assert written.startswith("error: ")


def test_without_a_token_nothing_is_sent(run, hub, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert push(run) == 2
    assert "no token for the hub: run hf auth login" in capsys.readouterr().err
    assert not hub.asked


def test_a_hub_that_is_not_there(run, hub, capsys, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert push(run) == 2
    assert "the hub cannot be reached" in capsys.readouterr().err


def test_a_public_repository_is_not_pushed_to_by_accident(run, hub, capsys):
    hub.repositories["me/model"] = Repository(private=False)
    assert push(run) == 2
    assert "everybody can read it; add --public" in capsys.readouterr().err
    assert push(run, "--public") == 0


def test_scores_of_another_checkpoint_are_refused(run, hub, capsys):
    (run / "config.json").write_text((run / "config.json").read_text() + " ")
    assert push(run, "--scores", str(run.parent / "eval")) == 2
    assert "scores.json is not of" in capsys.readouterr().err


def test_code_is_looked_for(run, hub, capsys):
    (run / "modeling_internvl_chat.py").unlink()
    assert push(run) == 2
    assert "lacks modeling_internvl_chat.py" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["model", "a/b/c", "-/x"])
def test_a_name_is_checked_first(run, name, capsys):
    with pytest.raises(SystemExit) as end:
        export_hub.main([str(run), "--repo_id", name])
    assert end.value.code == 2
    assert capsys.readouterr().err.startswith("error: argument --repo_id: ")
