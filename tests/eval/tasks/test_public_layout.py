"""Every task of V2PE's public README finds its data where that README puts it."""

from pathlib import Path

import pytest

from eval.check_data import check_task, main, skip_missing
from eval.core import data_root
from eval.core.data_root import find_data_root
from eval.run.options import RunOptions
from eval.tasks import longvqa, milebench, mm_niah, mm_niah_long
from eval.tasks.registry import find_task, select_tasks
from internvl.errors import EvalError
from tests.public_layout import lay_out_mmmu_cache, lay_out_public_data

GENERAL = (
    "vqa-chartqa-test", "vqa-docvqa-val", "vqa-docvqa-test", "vqa-ai2d-test", "vqa-infovqa-val", "vqa-infovqa-test",
    "scienceqa", "pope", "mmbench", "mmbench/dev-en-20231003", "ccbench", "seed",
)  # fmt: skip


@pytest.fixture(scope="module")
def laid_out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("readme")
    lay_out_public_data(folder)
    return folder


@pytest.fixture(params=["working directory", "repository"])
def elsewhere(request, laid_out, tmp_path, monkeypatch):
    """The README's folders are in the working directory, or in the repository while one works in another folder."""
    is_here = request.param == "working directory"
    monkeypatch.chdir(laid_out if is_here else tmp_path)
    monkeypatch.setattr(data_root, "REPOSITORY", tmp_path if is_here else laid_out)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    "names",
    [
        GENERAL,
        [f"mm_niah/{name}" for name in mm_niah.FAMILY.names],
        [f"mm_niah_long/{name}" for name in mm_niah_long.FAMILY.names],
        [f"milebench/{name}" for name in milebench.FAMILY.names],
        [f"longvqa/{name}" for name in longvqa.FAMILY.names],
    ],
    ids=["general", "mm_niah", "mm_niah_long", "milebench", "longvqa"],
)
def test_all_tasks_are_complete(names):
    states = [check_task(task, find_data_root(), open_media=True) for task in select_tasks(",".join(names))]
    assert [(state.task.name, state.summarise()) for state in states if not state.is_complete] == []


@pytest.mark.usefixtures("elsewhere")
def test_check_data_needs_no_folder(capsys):
    assert main(["seed,pope,longvqa/chartqa-32k"]) == 0
    assert "3 of 3 tasks are complete" in capsys.readouterr().out


def test_long_pictures_may_be_those_of_v2pe_data(laid_out, tmp_path):
    """Where the archive of MM-NIAH's test split was not unpacked."""
    (tmp_path / "val").symlink_to(laid_out / "dataset/val")
    (tmp_path / "image").symlink_to(laid_out / "dataset/image")
    task = find_task("mm_niah_long/retrieval-text-test-128k")
    (picture,) = task.read_samples(data_root.DataRoot((tmp_path,)))[0].images
    assert picture == tmp_path / "image/long_mr/val/1.png"


def test_missing_data_is_said_with_the_folders(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data_root, "REPOSITORY", tmp_path / "repository")
    assert main(["pope"]) == 1
    said = capsys.readouterr().out
    assert f"missing file: {tmp_path}/dataset/benchmark/pope/llava_pope_test.jsonl" in said
    assert f"looked in {tmp_path}/dataset/benchmark, {tmp_path}/repository/dataset/benchmark, {tmp_path}/data," in said


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache folder of the hub, without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("INTERNVL_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hub"


@pytest.mark.parametrize(("name", "split"), [("dev", "dev"), ("val", "validation"), ("test", "test")])
def test_mmmu_comes_from_the_hubs_cache(hub, name, split):
    lay_out_mmmu_cache(hub)
    task = find_task(f"mmmu/{name}")
    task.fetch_missing(find_data_root())
    state = check_task(task, find_data_root(), open_media=True)
    assert (state.summarise(), state.num_samples) == ("complete: 30 questions, 30 pictures or videos", 30)
    assert find_data_root() / task.annotation == hub.parent / f"cache/benchmark/MMMU/{split}.jsonl"


def test_mmmu_that_is_there_is_not_fetched(hub, tmp_path):
    (tmp_path / "data/MMMU").mkdir(parents=True)
    (tmp_path / "data/MMMU/validation.jsonl").write_text("{}\n")
    find_task("mmmu/val").fetch_missing(find_data_root())
    assert not (tmp_path / "cache").exists()


def test_mmmu_out_of_reach_says_why_and_what_to_do(hub, tmp_path, caplog):
    with pytest.raises(EvalError) as error:
        find_task("mmmu/val").fetch_missing(find_data_root())
    assert "MMMU/MMMU cannot be fetched (HF_HUB_OFFLINE is set)" in str(error.value)
    assert "hf download MMMU/MMMU --repo-type dataset" in str(error.value)
    asked = RunOptions(checkpoint=tmp_path, tasks="mmmu/val", skip_missing=True)
    with pytest.raises(EvalError, match=r"no complete data set; .*\n  mmmu/val: missing"):
        skip_missing(asked)
    assert "mmmu/val: MMMU/MMMU cannot be fetched" in caplog.text


def test_mmmu_lacking_a_subject_is_refused(hub):
    snapshot = lay_out_mmmu_cache(hub)
    (snapshot / "Music/validation-00000-of-00001.parquet").unlink()
    with pytest.raises(EvalError, match=r"lacks 1 subjects of the split validation \(Music\)"):
        find_task("mmmu/val").fetch_missing(find_data_root())


def test_mmmu_without_room_ends_in_one_line(hub, monkeypatch):
    lay_out_mmmu_cache(hub)
    Path(hub.parent / "file").write_text("")
    monkeypatch.setenv("INTERNVL_CACHE", str(hub.parent / "file"))
    with pytest.raises(EvalError, match="set INTERNVL_CACHE to another folder"):
        find_task("mmmu/val").fetch_missing(find_data_root())


def test_check_data_fetches_nothing(hub, capsys):
    lay_out_mmmu_cache(hub)
    assert main(["mmmu/val"]) == 1
    assert "eval.run fetches it by itself" in capsys.readouterr().out
    assert not (hub.parent / "cache").exists()
