import numpy as np
import pytest
from PIL import Image

from internvl.errors import ConfigError
from internvl.synth.corpus.documents import ImageBlock, TextBlock, describe_corpus, read_corpus, split_corpus
from internvl.synth.corpus.paragraphs import cut_text


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "corpus"
    (root / "pictures").mkdir(parents=True)
    for name in ("a", "b", "loose"):
        pixels = np.random.default_rng(len(name)).integers(0, 256, (70, 80, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "pictures" / f"{name}.png")
    Image.new("RGB", (70, 70)).save(tmp_path / "outside.png")
    (root / "one.md").write_text(
        "Before. ![x](pictures/a.png) After.\n\nNext <img> here.\n\n"
        "![](../outside.png) ![](http://x/y.png) End <image>."
    )
    (root / "two.html").write_text(
        "<h1>Title &amp; more</h1><style>p{}</style><p>Text <b>bold</b>.</p>"
        "<img src=pictures/b.png><script>var a;</script>"
    )
    (root / "three.txt").write_text("Plain ![x](pictures/a.png) text.")
    (root / "four.txt").write_bytes(b"\xff bad")
    (root / ".hidden.txt").write_text("never read")
    return root


def test_documents_keep_texts_and_images_in_order(folder):
    documents = {document.name: document.blocks for document in read_corpus(folder).documents}
    assert list(documents) == ["one.md", "three.txt", "two.html"]
    image = ImageBlock("pictures/a.png")
    assert documents["one.md"][:3] == (TextBlock("Before."), image, TextBlock("After."))
    assert documents["two.html"] == (TextBlock("Title & more"), TextBlock("Text bold."), ImageBlock("pictures/b.png"))
    assert documents["three.txt"] == (TextBlock("Plain ![x](pictures/a.png) text."),)


def test_special_strings_are_made_harmless(folder):
    (document, *_) = read_corpus(folder).documents
    texts = [block.text for block in document.blocks if isinstance(block, TextBlock)]
    assert texts[2:] == ["Next < img> here.", "End image."]


def test_what_cannot_be_used_is_listed(folder):
    corpus = read_corpus(folder)
    assert corpus.loose_images == ("pictures/loose.png",)
    assert sum("is not a readable image of the corpus" in problem for problem in corpus.problems) == 2
    assert any(problem.startswith("four.txt") for problem in corpus.problems)


def test_splits_share_no_document_and_no_image(folder):
    corpus = read_corpus(folder)
    for seed in range(5):
        train, test = split_corpus(corpus, test_share=0.4, seed=seed)
        names = [{document.name for document in part.documents} for part in (train, test)]
        assert names[0] | names[1] == {"one.md", "two.html", "three.txt"}
        assert names[1]
        assert not names[0] & names[1]
        assert not set(train.images) & set(test.images)


def test_a_single_document_cannot_be_split(tmp_path):
    (tmp_path / "a.txt").write_text("Only one.")
    with pytest.raises(ConfigError, match="one document"):
        split_corpus(read_corpus(tmp_path), test_share=0.2, seed=0)


def test_the_digest_follows_texts_and_names(folder):
    before = describe_corpus(folder)
    assert describe_corpus(folder) == before
    (folder / "three.txt").write_text("Plain ![x](pictures/a.png) Text.")
    assert describe_corpus(folder) != before


@pytest.mark.parametrize("text", ["word " * 500, "x" * 1000, "One sentence. " * 80, "", "  \n "])
def test_cut_text_loses_nothing_and_keeps_the_limit(text):
    pieces = cut_text(text, max_characters=100)
    assert all(0 < len(piece) <= 100 for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
