"""Data sets of the Hugging Face hub, through the cache that its client shares with other programs."""

from collections.abc import Sequence
from pathlib import Path

from internvl.errors import EvalError


def fetch_dataset(repository: str, patterns: Sequence[str]) -> Path:
    """The folder of a data set in the hub's cache; files that match a pattern are downloaded unless they are there.

    HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and the client's other variables have their usual meaning. Raises EvalError if
    the hub is out of reach and the cache does not have the files.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HTTPError

    try:
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=list(patterns)))
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else str(error).partition("\n")[0]
        raise EvalError(
            f"{repository} cannot be fetched ({reason}) and is not in {constants.HF_HUB_CACHE}; where there is a "
            f"network: hf download {repository} --repo-type dataset, then copy the folder"
        ) from error
