"""Real photographs that scikit-learn and scikit-image ship; crops of them are the haystack.

Only files inside the installed packages are used, nothing is downloaded. Train and test have different pictures, so no
crop of one split shows what the other shows.
"""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random

from PIL import Image

from internvl.data.storage.pixels import open_picture, to_rgb
from internvl.errors import DataError, MissingDependencyError
from internvl.synth.forms import Split


@dataclass(frozen=True)
class Photograph:
    """A picture file inside an installed package."""

    package: str
    path: str

    def load(self) -> Image.Image:
        """Decode it to RGB.

        Raises:
            MissingDependencyError: The package is not installed.
            DataError: This version of the package has no such file.
        """
        try:
            resource = files(self.package)
        except ModuleNotFoundError:
            raise MissingDependencyError(
                f"{self.package} is not installed, its pictures are needed: pip install scikit-learn scikit-image"
            ) from None
        for part in self.path.split("/"):
            resource = resource / part
        if not resource.is_file():
            raise DataError(f"{self.package} holds no {self.path}; install the version that requirements.txt names")
        with resource.open("rb") as file:
            return to_rgb(open_picture(file))


PHOTOGRAPHS: dict[Split, tuple[Photograph, ...]] = {
    "train": (
        Photograph("skimage", "data/astronaut.png"),
        Photograph("skimage", "data/chelsea.png"),
        Photograph("skimage", "data/coffee.png"),
        Photograph("skimage", "data/motorcycle_left.png"),
        Photograph("skimage", "data/camera.png"),
        Photograph("skimage", "data/brick.png"),
        Photograph("skimage", "data/ihc.png"),
        Photograph("sklearn", "datasets/images/flower.jpg"),
    ),
    "test": (
        Photograph("skimage", "data/rocket.jpg"),
        Photograph("skimage", "data/coins.png"),
        Photograph("skimage", "data/grass.png"),
        Photograph("skimage", "data/hubble_deep_field.jpg"),
        Photograph("sklearn", "datasets/images/china.jpg"),
    ),
}


@cache
def load_photographs(split: Split) -> tuple[Image.Image, ...]:
    """The photographs of one split as RGB images."""
    return tuple(photograph.load() for photograph in PHOTOGRAPHS[split])


def crop_photograph(photograph: Image.Image, size: tuple[int, int], rng: Random) -> Image.Image:
    """A random region scaled to `size` (width, height in pixels) in its aspect ratio, mirrored half of the time."""
    width, height = size
    largest = min(photograph.width / width, photograph.height / height)
    scale = largest * rng.uniform(0.4, 1.0)
    left = rng.uniform(0, photograph.width - scale * width)
    top = rng.uniform(0, photograph.height - scale * height)
    box = (left, top, left + scale * width, top + scale * height)
    crop = photograph.resize(size, Image.Resampling.BICUBIC, box=box)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop
