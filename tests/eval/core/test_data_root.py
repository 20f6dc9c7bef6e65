"""Where the data of benchmarks is looked for, and which pictures records may name."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.core import data_root
from eval.core.data_root import DataRoot, find_annotation, find_data_root, find_media, read_data_root
from eval.core.media import is_there
from internvl.errors import DataError, EvalError


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A working directory and a repository, both without data."""
    for name in ("work", "repository"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(data_root, "REPOSITORY", tmp_path / "repository")
    return tmp_path


def write(path, text="x"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_given_folder_comes_first_then_three_each_in_the_working_directory_and_the_repository(places):
    folders = [
        base / folder / "pope/a.jsonl"
        for folder in ("given", "dataset/benchmark", "data", "dataset")
        for base in (places / "work", places / "repository")
    ]
    for path in reversed(folders):
        write(path)
        assert find_data_root(Path("given")) / "pope/a.jsonl" == path
    assert find_data_root() / "pope/a.jsonl" == folders[2]


def test_folders_of_v2pe_data_may_lie_in_dataset_itself(places):
    path = write(places / "work/dataset/val/long_vqa_32k/a.jsonl")
    assert find_data_root() / "V2PE-Data/val/long_vqa_32k/a.jsonl" == path
    preferred = write(places / "work/dataset/V2PE-Data/val/long_vqa_32k/a.jsonl")
    assert find_data_root() / "V2PE-Data/val/long_vqa_32k/a.jsonl" == preferred


@pytest.mark.parametrize("folder", ["infographicsvqa", "InfographicsVQA", "infovqa", "InfoVQA"])
def test_the_case_of_a_benchmarks_folder_does_not_matter(places, folder):
    path = write(places / "work/data" / folder / "val.jsonl")
    assert find_data_root() / "infographicsvqa/val.jsonl" == path


def test_a_file_that_is_nowhere_is_expected_in_the_first_folder_and_all_are_named(places):
    with pytest.raises(EvalError) as error:
        find_annotation(Path("pope/a.jsonl"), find_data_root(), source="https://example.org")
    message = str(error.value)
    assert f"expected at {places / 'work/dataset/benchmark/pope/a.jsonl'}" in message
    named = ["work/dataset/benchmark", "repository/dataset/benchmark", "work/data", "repository/data", "work/dataset"]
    assert all(f"{places / folder}," in message for folder in named)
    assert "get it from https://example.org" in message


def test_folders_survive_being_written_down(places):
    asked = find_data_root(Path("given"))
    assert read_data_root(str(asked)) == asked


def test_a_picture_is_taken_from_the_first_folder_that_has_it(places):
    root = DataRoot((places / "a", places / "b"))
    one, two = write(places / "a/one/1.png"), write(places / "b/two/2.png")
    assert find_media("1.png", root, (root / "one", root / "two")) == one
    assert find_media("2.png", root, (root / "one", root / "two")) == two
    assert find_media("3.png", root, (root / "one", root / "two")) == places / "a/one/3.png"
    assert find_media("two/2.png", root) == two


@pytest.mark.parametrize("prefix", ["data", "./data", "dataset/benchmark", "dataset", "data/x/../../data"])
def test_paths_from_the_working_directory_of_the_public_code_are_below_the_data_root(places, prefix):
    root = DataRoot((places / "a", places / "b"))
    path = write(places / "b/chartqa/1.png")
    assert find_media(f"{prefix}/chartqa/1.png", root, (places / "elsewhere",)) == path


OUTSIDE = ["../1.png", "a/../../1.png", "data/../../1.png", "data/x/../../../1.png", "..", "/etc/hostname", "//etc/x"]


@pytest.mark.parametrize("name", [*OUTSIDE, "https://example.org/1.png", "file:///etc/hostname", "", ".", "a/.."])
def test_paths_that_leave_their_folder_are_refused(places, name):
    root = DataRoot((places / "a",))
    for folders in ((), (places / "b",)):
        with pytest.raises(DataError, match=r"leads out of its root|is not a path below"):
            find_media(name, root, folders)


@pytest.mark.parametrize("name", [None, 7, ["1.png"], {}])
def test_a_name_that_is_no_text_is_refused(places, name):
    with pytest.raises(DataError, match="expected str"):
        find_media(name, DataRoot((places / "a",)))


@given(st.lists(st.sampled_from(["..", ".", "a", "data", "dataset", "benchmark", ""]), min_size=1, max_size=7))
def test_whatever_a_name_is_made_of_it_is_inside_or_refused(parts):
    root = DataRoot((Path("/mnt/data"),))
    try:
        path = find_media("/".join(parts), root)
    except DataError:
        return
    assert path.is_relative_to("/mnt/data")
    assert ".." not in path.parts


def test_links_inside_the_folder_may_lead_anywhere(places):
    write(places / "coco/val2014/1.jpg")
    (places / "a/pope").mkdir(parents=True)
    (places / "a/pope/val2014").symlink_to("../../coco/val2014")
    assert find_media("1.jpg", places / "a", (places / "a/pope/val2014",)).is_file()


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 5000 + ".png"])
def test_names_that_no_file_can_have_are_missing(places, name):
    assert not is_there("image", find_media(name, DataRoot((places / "a",))))
