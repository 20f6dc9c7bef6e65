"""Tokenizers of every form that AutoTokenizer loads without code of the folder."""

import pytest
from transformers import BertTokenizer, LlamaTokenizer, PreTrainedTokenizerFast

from internvl.model.errors import CheckpointError
from internvl.model.registration import load_tokenizer
from tests.train.tiny_run import make_tokenizer

from .qwen_folder import make_qwen_checkpoint, split_tokenizer

TEXT = "<|im_start|>user\nab cab<img>"


@pytest.fixture
def folder(tmp_path):
    make_qwen_checkpoint(tmp_path)
    return tmp_path


def test_vocab_json_and_merges_txt_are_a_tokenizer(folder):
    whole = load_tokenizer(folder)
    split_tokenizer(folder)
    assert load_tokenizer(folder)(TEXT)["input_ids"] == whole(TEXT)["input_ids"]
    assert len(load_tokenizer(folder)) == len(whole)


def test_vocab_txt_is_a_tokenizer(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ab", "##c"]) + "\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, BertTokenizer)
    assert tokenizer("abc", add_special_tokens=False)["input_ids"] == [5, 6]


def test_tokenizer_model_of_another_class_is_a_tokenizer(tmp_path):
    make_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, LlamaTokenizer | PreTrainedTokenizerFast)
    assert tokenizer.convert_tokens_to_ids("<s>") == 1


def test_a_class_that_only_code_of_the_folder_knows_is_refused(folder):
    (folder / "tokenizer_config.json").write_text('{"auto_map": {"AutoTokenizer": ["x.Mine", null]}}')
    (folder / "x.py").write_text("raise SystemExit\n")
    with pytest.raises(CheckpointError, match=r"the tokenizer of .* cannot be loaded"):
        load_tokenizer(folder)
