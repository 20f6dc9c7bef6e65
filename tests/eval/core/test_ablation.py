"""Questions without what their pictures show."""

import pytest
from PIL import Image

from eval.core.ablation import ablate, describe_ablation
from eval.core.sample import BlankImage, Sample
from internvl.data.video import VideoClip
from internvl.errors import ConfigError


@pytest.fixture
def pictures(tmp_path):
    """Four pictures of different widths."""
    for index in range(4):
        Image.new("RGB", (10 + index, 5), "red").save(tmp_path / f"{index}.png")
    return [tmp_path / f"{index}.png" for index in range(4)]


def ask(name, *images, prompt=None, **details):
    return Sample(name, prompt or "<image>\n" * len(images) + "What?", tuple(images), "a", **details)


def test_nothing_changes_without_an_ablation(pictures):
    samples = [ask("0", pictures[0]), ask("1", pictures[1])]
    assert ablate(samples, "none", num_frames=2, limit=1) == samples[:1]
    assert describe_ablation("none", 3) == {}


def test_text_only_leaves_out_pictures_and_their_places(pictures):
    options = ask("0", *pictures[:2], prompt="<image>\nWhich?\nA. <image>\nB. no <video>", tile_limits=(1, 2))
    video = Sample("1", "<video>\nWhat?", (), "a", videos=(VideoClip("gone.mp4"),))
    first, second = ablate([options, video], "text_only", num_frames=2)
    assert (first.prompt, first.images, first.tile_limits) == ("Which?\nA. \nB. no <video>", (), ())
    assert (second.prompt, second.videos) == ("What?", ())


def test_blank_pictures_have_the_size_of_those_they_replace(pictures):
    [sample] = ablate([ask("0", pictures[0], pictures[3])], "no_image", num_frames=2)
    assert sample.images == (BlankImage(10, 5), BlankImage(13, 5))
    image = sample.images[1].open()
    assert (image.size, image.getcolors()) == ((13, 5), [(65, (128, 128, 128))])
    assert sample.prompt == "<image>\n<image>\nWhat?"


def test_a_blank_video_is_its_labelled_frames_of_one_tile_each(pictures, tmp_path):
    prompt = "Look at <image> and <video>\nthen <image>. What?"
    sample = ask("0", *pictures[1:3], prompt=prompt, videos=(VideoClip(tmp_path),), tile_limits=(None, 6))
    [blank] = ablate([sample], "no_image", num_frames=2)
    assert blank.prompt == "Look at <image> and Frame1: <image>\nFrame2: <image>\nthen <image>. What?"
    assert blank.images == (BlankImage(11, 5), BlankImage(10, 5), BlankImage(10, 5), BlankImage(12, 5))
    assert (blank.videos, blank.tile_limits) == ((), (None, 1, 1, 6))


def test_a_picture_that_cannot_be_read_is_left_to_fail_its_question(pictures, tmp_path):
    broken = ask("0", tmp_path / "gone.png")
    assert ablate([broken, ask("1", pictures[0])], "no_image", num_frames=2)[0] == broken


def test_shuffled_pictures_are_those_of_other_questions_and_follow_the_seed(pictures, tmp_path):
    clips = [VideoClip(tmp_path / f"{index}.mp4") for index in range(4)]
    samples = [
        ask(str(index), *[pictures[index]] * (1 + index % 2), videos=(clips[index],), prompt="?") for index in range(4)
    ]
    shuffled = ablate(samples, "shuffled_images", num_frames=2, seed=1)
    for before, after in zip(samples, shuffled, strict=True):
        assert (after.id, after.prompt, len(after.images)) == (before.id, "?", len(before.images))
        assert not {*before.images, *before.videos} & {*after.images, *after.videos}
    assert ablate(samples, "shuffled_images", num_frames=2, seed=1) == shuffled
    assert any(ablate(samples, "shuffled_images", num_frames=2, seed=seed) != shuffled for seed in range(2, 9))


def test_a_limit_does_not_change_what_the_first_questions_are_shown(pictures):
    samples = [ask(str(index), picture) for index, picture in enumerate(pictures)]
    whole = ablate(samples, "shuffled_images", num_frames=2)
    assert ablate(samples, "shuffled_images", num_frames=2, limit=2) == whole[:2]


def test_questions_without_pictures_stay_and_few_pictures_are_taken_again(pictures):
    samples = [ask("0", *pictures[:3]), ask("1"), ask("2", pictures[3])]
    first, second, third = ablate(samples, "shuffled_images", num_frames=2)
    assert first.images == (pictures[3],) * 3
    assert second.images == ()
    assert third.images[0] in pictures[:3]


def test_pictures_that_all_questions_share_cannot_be_exchanged(pictures):
    with pytest.raises(ConfigError, match=r"sample '.' shows every picture of the task.*no_image"):
        ablate([ask("0", pictures[0]), ask("1", pictures[0])], "shuffled_images", num_frames=2)
    with pytest.raises(ConfigError, match="every picture"):
        ablate([ask("0", pictures[0])], "shuffled_images", num_frames=2)


def test_the_fingerprint_names_the_ablation_and_its_seed_where_one_is_drawn():
    assert describe_ablation("no_image", 3) == {"ablate": "no_image"}
    assert describe_ablation("shuffled_images", 3) == {"ablate": "shuffled_images", "ablate_seed": 3}
