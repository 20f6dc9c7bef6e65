"""Opening videos: which files FFmpeg may read, and which of their streams is shown.

FFmpeg gets an open file and a list of containers. A playlist (m3u8, ffconcat, mpd, sdp) is not among them, so no other
file and no network is ever read on behalf of a video.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import NoReturn

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from internvl.data.storage.cache import FileStamp
from internvl.data.storage.media import MediaPath, open_media, stamp_media
from internvl.data.storage.outage import is_system_fault
from internvl.errors import DataError, InternVLError

# FFmpeg's names of containers, of raw streams, and of still pictures (videos of one frame).
CONTAINERS = (
    *("mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "dv", "ivf", "gif", "apng"),
    *("h264", "hevc", "obu", "m4v", "mpegvideo"),
    *("jpeg_pipe", "png_pipe", "bmp_pipe", "tiff_pipe"),
)
# The protocols are for what a container itself might refer to.
_OPTIONS = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}


def stamp_video(path: MediaPath) -> FileStamp:
    """The present version of a video file. Raises DataError if it is missing or not a regular file."""
    with video_errors(path):
        return stamp_media(path)


@contextmanager
def open_video(path: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """A container and its stream to show. Raises DataError if opening or the block fails, or it has no video stream."""
    with video_errors(path), open_media(path) as file, av.open(file, "r", container_options=_OPTIONS) as container:
        stream = _find_stream(container)
        if stream is None:
            kinds = ", ".join(sorted({each.type for each in container.streams})) or "none"
            refuse(path, f"it has no video stream (streams: {kinds})")
        if stream.codec_context is None:
            refuse(path, "its video stream is of a kind that PyAV cannot decode")
        stream.codec_context.thread_count = 1
        yield container, stream


def _find_stream(container: InputContainer) -> VideoStream | None:
    """The best video stream, as FFmpeg rates them; no cover picture, and no still where there is a film."""
    cover = int(av.stream.Disposition.attached_pic)
    streams = [stream for stream in container.streams.video if not int(stream.disposition) & cover]
    best = container.streams.best("video")
    streams.sort(key=lambda stream: stream is not best)
    if len(streams) < 2:
        return streams[0] if streams else None
    # FFmpeg's rating looks at the first packets only, so that a still may win.
    return next((stream for stream in streams if _is_film(container, stream)), streams[0])


def _is_film(container: InputContainer, stream: VideoStream) -> bool:
    """Whether a stream has more than one frame; the container is at its beginning before and after."""
    if stream.frames:
        return stream.frames > 1
    packets = (packet for packet in container.demux(stream) if packet.size)
    num_packets = len([*islice(packets, 2)])
    container.seek(container.start_time or 0)
    return num_packets > 1


@contextmanager
def video_errors(path: MediaPath) -> Iterator[None]:
    """Turn whatever the block raises about a video into a DataError; faults of the system stay what they are."""
    try:
        yield
    except InternVLError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        message = f"video {path} not found; correct the path, or the data set's root in the meta file"
        raise DataError(message, kind="missing") from None
    except Exception as error:  # FFmpeg and pillow raise anything
        # The file is read by Python, so errors of FFmpeg's own are about its content, whatever their number.
        if is_system_fault(error) and not isinstance(error, av.FFmpegError):
            raise
        if getattr(error, "errno", None) == errno.EINVAL:
            refuse(path, "it is damaged, or no container that is read here (mp4, mkv, webm, avi, mpg, gif, ...)", error)
        refuse(path, getattr(error, "strerror", None) or str(error) or type(error).__name__, error)


def refuse(path: MediaPath, cause: str, error: BaseException | None = None) -> NoReturn:
    """Raise DataError: the video cannot be read; `error` is what another library raised."""
    message = f"video {path} cannot be read: {cause}; replace the file or remove its record"
    raise DataError(message, kind="video") from error
