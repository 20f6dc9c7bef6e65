"""Options of the server: where it listens, who may ask, and what one request may cost."""

import os
from dataclasses import dataclass
from pathlib import Path

from internvl.infer.flags import at_least, check_flags, flag, within

API_KEY_VARIABLE = "INTERNVL_API_KEY"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class ServerOptions:
    """What can be set about the server; the help of every field says what it means.

    Raises:
        ConfigError: A limit out of range.
    """

    host: str = flag("127.0.0.1", "address to listen on (default: %(default)s, this machine only)")
    port: int = flag(
        8000, "port to listen on; 0: any free one (default: %(default)s)", read=int, check=within(0, 65535)
    )
    model_name: str | None = flag(None, "name of the model in requests; default: that of the checkpoint's folder")
    api_key: str | None = flag(
        None,
        f"key that requests must carry; default: the variable {API_KEY_VARIABLE}, which other users of the machine "
        "cannot see in the list of processes",
        metavar="KEY",
    )
    allowed_media_root: Path | None = flag(
        None, "folder whose files requests may name as file:// URLs; default: none", read=Path, metavar="FOLDER"
    )
    allow_private_addresses: bool = flag(
        False, "fetch pictures from addresses of this machine and of private networks, too", read=bool
    )
    max_body_mib: int = flag(
        128, "limit of a request with all its data URLs, in MiB (default: %(default)s)", read=int, check=at_least(1)
    )
    max_media_mib: int = flag(
        64, "limit of a picture or video file, in MiB (default: %(default)s)", read=int, check=at_least(1)
    )
    max_pixels: int = flag(
        2**26, "limit of a picture or of a frame of a video (default: %(default)s)", read=int, check=at_least(1)
    )
    max_pictures: int = flag(
        64,
        "limit of pictures and frames of videos in a request (default: %(default)s)",
        read=int,
        check=at_least(0),
    )
    max_prompt_tokens: int = flag(
        131072, "limit of a prompt, visual tokens included (default: %(default)s)", read=int, check=at_least(1)
    )
    max_new_tokens: int = flag(
        2048, "limit of an answer, and what a request gets that sets none (default: %(default)s)",
        read=int, check=at_least(1),
    )  # fmt: skip
    max_batch: int = flag(
        8, "answers that are generated at once, of requests that wait together (default: %(default)s)",
        read=int, check=at_least(1),
    )  # fmt: skip
    max_batch_tokens: int = flag(
        32768, "limit of their prompts together, padding included; a longer prompt is answered alone "
        "(default: %(default)s)", read=int, check=at_least(1),
    )  # fmt: skip
    max_requests: int = flag(
        64, "requests that are answered or wait; further ones are refused (default: %(default)s)",
        read=int, check=at_least(1),
    )  # fmt: skip
    timeout_s: float = flag(
        300.0, "limit of a request from its arrival to its last token, in seconds (default: %(default)g)", read=float
    )
    grace_s: float = flag(
        10.0, "how long requests may go on when the server is stopped, in seconds (default: %(default)g)", read=float
    )

    def __post_init__(self) -> None:
        """Refuse numbers out of range."""
        check_flags(self)

    @property
    def key(self) -> str | None:
        """The key that requests must carry; None: none."""
        return self.api_key or os.environ.get(API_KEY_VARIABLE) or None

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host in _LOOPBACK
