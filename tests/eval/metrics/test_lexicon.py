import zipfile

import pytest

from eval.metrics.lexicon import WordNetLexicon, find_nltk_folders, load_lexicon

WORDS = "run\nmake\nus\n"
INDEX = "  1 This is a licence line.\nrun n 16 4 @ ~ + ; 16 0 07460104\nwa n 1\nman n 1\nmen n 1\nbox n 1\nox n 1\n"
EXCEPTIONS = "women woman\noxen ox\n"
FILES = {"words/en": WORDS, "wordnet/index.noun": INDEX, "wordnet/noun.exc": EXCEPTIONS}


@pytest.fixture
def folder(tmp_path):
    for name, text in FILES.items():
        (tmp_path / "corpora" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "corpora" / name).write_text(text)
    return tmp_path


def test_the_data_of_nltk_are_read(folder):
    lexicon = load_lexicon([folder / "nothing", folder])
    assert lexicon.name == "wordnet"
    assert [lexicon.find_root(stem) for stem in ("runn", "mak", "us", "zzz", "")] == ["run", "make", "us", None, None]
    assert [lexicon.find_singular(noun) for noun in ("was", "men", "boxes", "oxen", "women", "qs")] == [
        *("wa", "men", "box", "ox", "women", "qs")  # woman is no noun of this small WordNet
    ]


def test_zip_files_are_read_too(folder, tmp_path):
    other = tmp_path / "other" / "corpora"
    other.mkdir(parents=True)
    for corpus in ("words", "wordnet"):
        with zipfile.ZipFile(other / f"{corpus}.zip", "w") as archive:
            for name, text in FILES.items():
                if name.startswith(f"{corpus}/"):
                    archive.writestr(name, text)
    assert load_lexicon([tmp_path / "other"]) == load_lexicon([folder])


def test_without_data_spelling_decides(tmp_path):
    assert load_lexicon([tmp_path]).name == "rules"


def test_both_corpora_are_needed(folder):
    (folder / "corpora" / "wordnet" / "index.noun").unlink()
    assert not isinstance(load_lexicon([folder]), WordNetLexicon)


def test_the_environment_names_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("NLTK_DATA", f"{tmp_path}/a:{tmp_path}/b")
    assert find_nltk_folders()[:2] == [tmp_path / "a", tmp_path / "b"]
