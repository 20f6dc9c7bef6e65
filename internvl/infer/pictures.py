"""Pictures: from files and frames to the visual features of a prompt, cached, and spread over ranks.

    Picture --(key: file, size, time, tiling)--> cache --(missing: decode, tile, vision tower)--> (tiles, T, D)

Pictures pass the vision tower together, up to a number of tiles, and their features serve any later prompt: those of a
picture do not depend on its company beyond rounding (a matrix product of more rows may add up in another order). Ranks
that answer together encode some pictures each; the tile counts, which all of them need, come from file headers.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from internvl.data.prompt import Picture, VideoSource, list_frame_pictures, load_pictures
from internvl.data.storage.media import MediaPath, stamp_media
from internvl.data.storage.pixels import Alpha
from internvl.data.tiling import Tiling
from internvl.data.transform import build_transform
from internvl.data.video import VideoClip, choose_frames
from internvl.errors import DataError
from internvl.infer.context_parallel import ContextParallel, ShardedFeatures, split_images
from internvl.infer.feature_cache import FeatureCache
from internvl.model.constants import TILES_AT_ONCE
from internvl.model.modeling_internvl_chat import InternVLChatModel


class PictureEncoder:
    """The vision side of a model, with a cache of features in main memory.

    Args:
        model: Encodes tiles.
        max_cache_bytes: Limit of the cache.
        context_parallel: The ranks that answer together; None: this process alone.
        alpha: How transparent pictures are shown.
    """

    def __init__(
        self,
        model: InternVLChatModel,
        *,
        max_cache_bytes: int,
        context_parallel: ContextParallel | None,
        alpha: Alpha = "white",
    ):
        self.model, self.context_parallel, self._alpha = model, context_parallel, alpha
        self.cache = FeatureCache(max_cache_bytes)
        self._transform = build_transform(model.config.image_size, pad2square=model.config.pad2square)

    def tiling(self, max_num: int) -> Tiling:
        """How the checkpoint cuts an image into at most `max_num` tiles."""
        config = self.model.config
        return Tiling(min(config.min_dynamic_patch, max_num), max_num, config.image_size, config.use_thumbnail)

    def list_frames(self, videos: Sequence[VideoSource], *, num_frames: int) -> list[list[Picture]]:
        """Choose the frames of every video that the model sees, one tile each.

        Raises:
            DataError: A video cannot be read, on this rank or on another one.
        """
        if not videos:
            return []
        clips = [video if isinstance(video, VideoClip) else VideoClip(video) for video in videos]
        with (self.context_parallel or ContextParallel(None)).fail_together():
            frames = [
                list_frame_pictures(clip.path, choose_frames(clip, num_frames=num_frames), tiling=self.tiling(1))
                for clip in clips
            ]
        return frames

    def encode(self, pictures: Sequence[Picture]) -> tuple[Tensor | ShardedFeatures | None, list[int]]:
        """Features as `generate` takes them (None without pictures), and the tiles of every picture.

        Raises:
            DataError: A picture cannot be read, on this rank or on another one.
        """
        if not pictures:
            return None, []
        if self.context_parallel is None:
            features = self._encode_here(pictures)
            return torch.cat(features).to(self.model.device), [len(tiles) for tiles in features]
        parallel = self.context_parallel
        with parallel.fail_together():
            tiles = [picture.count_tiles() for picture in pictures]
            shares = split_images(tiles, parallel.size)
            own = shares[parallel.rank]
            encoded = self._encode_here(pictures[own.start : own.stop])
        # A rank without pictures still takes part in the exchange, with a tensor of no tiles.
        none = torch.zeros(0, self.model.num_image_token, self.model.config.llm_config.hidden_size)
        local = torch.cat([none.to(self.model.dtype), *encoded]).to(self.model.device)
        owners = [range(sum(tiles[: share.start]), sum(tiles[: share.stop])) for share in shares]
        return ShardedFeatures(local, owners), tiles

    def _encode_here(self, pictures: Sequence[Picture]) -> list[Float[Tensor, "_tiles tokens dim"]]:
        """Features of every picture in main memory; one that appears twice is encoded once."""
        encoded: dict[Hashable, Tensor] = {}
        missing: dict[Hashable, Picture] = {}
        keys = [make_key(picture) for picture in pictures]
        for key, picture in zip(keys, pictures, strict=True):
            features = encoded.get(key, self.cache.get(key))
            if features is None:
                missing[key] = picture
            else:
                encoded[key] = features
        for (key, picture), features in zip(missing.items(), self._run_tower(missing.values()), strict=True):
            encoded[key] = features
            # The key of a picture in memory is its address, which another one may have later.
            if not isinstance(picture.source, Image.Image):
                self.cache.put(key, features)
        return [encoded[key] for key in keys]

    def _run_tower(self, pictures: Iterable[Picture]) -> Iterator[Float[Tensor, "_tiles tokens dim"]]:
        """Features of every picture, of several at a time."""
        pictures = list(pictures)
        images = load_pictures(pictures, alpha=self._alpha)
        tiles = (self._transform(picture.split(image)) for picture, image in zip(pictures, images, strict=True))
        for batch in group_tiles(tiles, max_tiles=self.model.vit_batch_size or TILES_AT_ONCE):
            pixels = torch.cat(batch)
            if self.model.device.type == "cuda":
                pixels = pixels.pin_memory().to(self.model.device, non_blocking=True)
            features = self.model.extract_feature(pixels).cpu()
            # A copy each, so that a picture that leaves the cache takes its memory along.
            yield from (part.clone() for part in features.split([len(part) for part in batch]))


def group_tiles(
    pictures: Iterable[UInt8[Tensor, "_tiles 3 size size"]], *, max_tiles: int
) -> Iterator[list[UInt8[Tensor, "_tiles 3 size size"]]]:
    """Consecutive pictures with at most `max_tiles` tiles together; a picture with more is a group by itself."""
    group: list[Tensor] = []
    for tiles in pictures:
        if group and sum(map(len, group)) + len(tiles) > max_tiles:
            yield group
            group = []
        group.append(tiles)
    if group:
        yield group


def make_key(picture: Picture) -> Hashable:
    """What features depend on; for a picture in memory it holds only as long as the picture lives.

    Raises:
        DataError: The file is not there, or cannot be fetched.
    """
    source = picture.source
    if isinstance(source, Image.Image):
        return ("picture", id(source), picture.tiling)
    if not isinstance(source, MediaPath):
        return (source, picture.tiling)
    try:
        return (stamp_media(source), picture.tiling, picture.frame)
    except (OSError, ValueError) as error:
        raise DataError(f"image {source} cannot be read: {error}") from error
