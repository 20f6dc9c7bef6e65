"""Questions: what a user asks and shows, and the prompt that the model gets for it.

    Question(prompt, images, videos, history)  --QuestionEncoder-->  ids, positions and features of an EncodedQuestion

The pictures are placed and the text is tokenized where training does it, too (internvl/data/prompt.py and
internvl/model/conversation.py).
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Int64, Shaped
from PIL import Image
from torch import Tensor

from internvl.data.prompt import ImageSource, Picture, VideoSource, check_placeholders, place_pictures
from internvl.errors import ConfigError, DataError
from internvl.infer.context_parallel import ShardedFeatures
from internvl.infer.pictures import PictureEncoder, make_key
from internvl.infer.settings import InferenceSettings
from internvl.model.conversation import ConversationTokenizer
from internvl.model.positions import has_axes
from internvl.model.positions_scheme import ImageGrid

Turn = tuple[str, str]  # an earlier question and its answer


@dataclass(frozen=True)
class Question:
    """A question with everything that it shows."""

    prompt: str  # user message with one `<image>` per image and one `<video>` per video
    # files or pictures in the order of their placeholders, those of earlier questions first
    images: Sequence[ImageSource] = ()
    # files, folders of frames, or parts of them (`VideoClip`), in the order of their placeholders
    videos: Sequence[VideoSource] = ()
    # tiles per image, one limit for all or one per image; None: the session's
    max_num: int | Sequence[int] | None = None
    num_frames: int | None = None  # frames per video; None: the session's
    rope_pos_id_version: str | None = None  # visual positions; None: the session's, `v2pe_fix` with a stride
    rope_pos_id_stride: int | float | None = None  # positions that one tile spans; None: the session's
    history: Sequence[Turn] = ()  # earlier questions, with their `<image>`, and answers
    system_message: str | None = None  # replaces the template's own
    # one `<image>` stands for all images together, whose tiles form one block; without videos and history
    is_joined: bool = False


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as the model takes it."""

    input_ids: Int64[Tensor, "1 length"]
    position_ids: Shaped[Tensor, "*axes 1 length"]
    rope_pos_id_version: str  # that the positions were made with
    features: Tensor | ShardedFeatures | None  # of all tiles; None without images
    tiles_per_image: Sequence[int]  # of images and frames
    keys: Sequence[Hashable]  # what the features of every picture depend on, equal only for equal features
    num_frames: int  # frames of all videos

    @property
    def length(self) -> int:
        """Tokens."""
        return self.input_ids.shape[1]

    @property
    def last_position(self) -> float:
        """Of the last token, which is text: the same on all axes."""
        return float(self.position_ids.flatten()[-1])


def check_text(text: str) -> None:
    """Raise DataError for half a character (a lone surrogate), which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds half a character, U+{ord(text[error.start]):04X}; correct the file that it comes from"
        ) from None


@contextmanager
def tokenizer_errors() -> Iterator[None]:
    """Tokenizers of any origin raise errors of any kind on odd texts: each is a DataError."""
    try:
        yield
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise DataError(f"the tokenizer cannot take the text ({type(error).__name__}: {error})") from error


def _check_length(num_tokens: int, num_tiles: int, max_tokens: int) -> None:
    if num_tokens > max_tokens:
        raise DataError(
            f"the prompt has {num_tokens} tokens, {num_tiles} tiles included, expected at most {max_tokens}; "
            "shorten the text, or give fewer pictures or tiles",
            kind="length",
        )


class QuestionEncoder:
    """Reads and encodes what questions show, and writes their prompts.

    Args:
        pictures: Makes the features, with the model that also makes the positions.
        conversation: Makes the token ids.
        settings: Resolved for the checkpoint (`InferenceSettings.for_checkpoint`).
    """

    def __init__(self, pictures: PictureEncoder, conversation: ConversationTokenizer, settings: InferenceSettings):
        self.pictures, self.conversation, self.settings = pictures, conversation, settings

    def encode(self, question: Question, *, max_tokens: int | None = None) -> EncodedQuestion:
        """Encode one question.

        Args:
            question: With everything that it shows.
            max_tokens: Limit of the prompt, compared before any picture is decoded; None: no limit.

        Raises:
            ConfigError: A limit out of range, or positions that do not fit together.
            DataError: Another number of `<image>` or `<video>` than of images or videos, one that cannot be read, or
                a prompt over the limit.
        """
        settings = self.settings.with_positions(question.rope_pos_id_version, question.rope_pos_id_stride)
        num_frames = self.settings.num_frames if question.num_frames is None else question.num_frames
        if num_frames < 1:
            raise ConfigError(f"num_frames is {num_frames}, expected at least 1")
        limits = self._list_limits(question)
        asked = [*(earlier for earlier, _ in question.history), question.prompt]
        check_text("".join([*asked, *(answer for _, answer in question.history), question.system_message or ""]))
        check_placeholders(asked, 1 if question.is_joined else len(question.images), len(question.videos))
        frames = self.pictures.list_frames(question.videos, num_frames=num_frames)
        images = [
            Picture(image, tiling=self.pictures.tiling(limit))
            for image, limit in zip(question.images, limits, strict=True)
        ]
        if question.is_joined:
            (*earlier, prompt), placed = asked, images
        else:
            (*earlier, prompt), placed = place_pictures(asked, images, frames)
        history = [(text, answer) for text, (_, answer) in zip(earlier, question.history, strict=True)]
        with tokenizer_errors():
            pieces = self.conversation.encode_prompt(prompt, history=history, system_message=question.system_message)
        model = self.pictures.model
        if max_tokens is not None:
            num_tiles = sum(picture.count_tiles() for picture in placed)
            num_text = sum(token != self.conversation.image_token_id for piece in pieces for token in piece.ids)
            _check_length(num_text + num_tiles * model.num_image_token, num_tiles, max_tokens)
        features, tiles_per_image = self.pictures.encode(placed)
        if question.is_joined:
            tiles_per_image = [sum(tiles_per_image)]

        ids, _ = self.conversation.join(pieces, tiles_per_image, num_image_token=model.num_image_token)
        input_ids = ids.unsqueeze(0).to(model.device)
        version = settings.rope_pos_id_version
        assert version is not None  # filled in by `for_checkpoint`
        grids = None
        if has_axes(version):
            read = [picture.read_grid() for picture in placed]
            read = [ImageGrid(rows=tiles_per_image[0], columns=1)] if question.is_joined else read
            grids = torch.tensor(read, dtype=torch.int64).reshape(-1, 4)
        position_ids = model.build_positions(
            input_ids,
            image_grids=grids,
            rope_pos_id_version=version,
            rope_pos_id_stride=settings.rope_pos_id_stride,
        )
        keys: list[Hashable] = []
        if self.settings.reuse_prefix:  # a picture in memory is equal to no other, not even to one at its address
            keys = [object() if isinstance(p.source, Image.Image) else make_key(p) for p in placed]
            keys = [tuple(keys)] if question.is_joined else keys
        num_shown = sum(map(len, frames))
        return EncodedQuestion(input_ids, position_ids, version, features, tiles_per_image, keys, num_shown)

    def _list_limits(self, question: Question) -> list[int]:
        """Tile limits, one per image."""
        max_num = self.settings.max_num if question.max_num is None else question.max_num
        assert max_num is not None  # filled in by `for_checkpoint`
        limits = list(max_num) if isinstance(max_num, Sequence) else [max_num] * len(question.images)
        if len(limits) != len(question.images):
            raise ConfigError(
                f"max_num has {len(limits)} limits for {len(question.images)} images, expected one per image"
            )
        lowest = min([max_num] if isinstance(max_num, int) else limits, default=1)
        if lowest < 1:
            raise ConfigError(f"max_num is {lowest}, expected at least 1")
        return limits
