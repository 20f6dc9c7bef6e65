"""Videos: files and folders of frames. What a header says, which frames are shown, what those frames look like.

    headers: read_video_info  -->  sampling: sample_frames, choose_frames  -->  decoding: load_frames
             no picture decoded    numbers only                                 seek, decode, one picture at a time

A video is a file that PyAV reads (mp4, webm, gif, ...; also in an archive or at a URL) or a folder of pictures. Frames
are counted from 0 in the order in which they are shown. They are turned upright as the header says; its pixel aspect is
not applied.
"""

from internvl.data.video.decoding import load_frames
from internvl.data.video.headers import VideoInfo, list_frames, read_video_info
from internvl.data.video.sampling import (
    VIDEO_PLACEHOLDER,
    VideoClip,
    check_sampling,
    choose_frames,
    find_clip,
    label_frames,
    sample_at_rate,
    sample_frames,
    sample_intervals,
    sample_segments,
)

__all__ = [
    "VIDEO_PLACEHOLDER",
    "VideoClip",
    "VideoInfo",
    "check_sampling",
    "choose_frames",
    "find_clip",
    "label_frames",
    "list_frames",
    "load_frames",
    "read_video_info",
    "sample_at_rate",
    "sample_frames",
    "sample_intervals",
    "sample_segments",
]
