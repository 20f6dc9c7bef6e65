"""Push a checkpoint to the Hugging Face hub, with a model card made from its run and its evaluations.

    python -m internvl.tools.export_hub work_dirs/run --repo_id me/my-model --scores work_dirs/eval --dry_run
    python -m internvl.tools.export_hub work_dirs/run --repo_id me/my-model --scores work_dirs/eval

What loading needs goes there in one commit: config, weights, tokenizer, code. States of the optimiser, logs and paths
stay. The repository is private unless --public says otherwise. A push that broke off is started again with the same
command: what arrived is not sent twice. The token is that of `hf auth login`, or the variable HF_TOKEN.
"""

import argparse
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from eval.core.result import TaskResult, find_results
from internvl.command import command
from internvl.errors import CheckpointError, ConfigError, InternVLError
from internvl.infer.checkpoint import check_checkpoint, fingerprint_checkpoint
from internvl.model.checkpoint_folder import find_checkpoint, list_weights
from internvl.model.loading import read_chat_config
from internvl.parser import CommandParser
from internvl.tools.conversion import COMPANIONS
from internvl.tools.model_card import Facts, find_base_model, read_run, write_card
from internvl.train.checkpoint.contents import read_weight_names

logger = logging.getLogger(__name__)

CARD = "README.md"
_WEIGHTS = ("*.safetensors", "*.bin", "*.index.json")
_AGAIN = "start the same command again: what arrived is not sent twice"


def list_hub_files(checkpoint: Path) -> dict[str, Path]:
    """Name on the hub -> file: all that loading needs, and nothing else.

    Raises:
        CheckpointError: A file is missing or broken, the code is missing, or the weights hold adapters.
    """
    config = check_checkpoint(checkpoint)
    if any(".lora_A." in name for name in read_weight_names(checkpoint)):
        raise CheckpointError(
            f"{checkpoint} holds LoRA adapters beside its weights, which AutoModel cannot load; push the run's own "
            f"folder, or v2pe merge {checkpoint} OUT and push that"
        )
    patterns = ("config.json", "*.index.json", "*.py", *COMPANIONS)
    found = {path for pattern in patterns for path in checkpoint.glob(pattern) if path.is_file()}
    files = {path.name: path for path in sorted({*found, *list_weights(checkpoint)})}
    auto_map = config.get("auto_map")
    wanted = {f"{str(name).split('.')[0]}.py" for name in auto_map.values()} if isinstance(auto_map, dict) else set()
    if not wanted or wanted - files.keys():
        raise CheckpointError(
            f"{checkpoint} lacks {', '.join(sorted(wanted - files.keys())) or 'auto_map in its config.json'}, by which "
            "AutoModel loads it with trust_remote_code=True; save the model once more with save_pretrained"
        )
    return files


def read_scores(folders: Sequence[Path], checkpoint: Path) -> list[TaskResult]:
    """The results below some folders.

    Raises:
        ConfigError: One is of another checkpoint.
        EvalError: A folder holds no results, or a broken one.
    """
    results = find_results(folders) if folders else []
    fingerprint = fingerprint_checkpoint(checkpoint)
    for result in results:
        if result.settings.values.get("checkpoint") != fingerprint:
            raise ConfigError(
                f"{result.folder}/scores.json is not of {checkpoint}: it was made with the weights "
                f"{result.settings.values.get('checkpoint')}, these are {fingerprint}; evaluate these, or leave it out"
            )
    return results


def push(files: Mapping[str, Path], card: str, repo_id: str, *, is_public: bool) -> str:
    """Make the repository unless it is there, and commit files and card. Files that have not changed are not sent.

    Weight files that the repository has and `files` has not are removed: they would be loaded in place of the new ones.

    Returns:
        Address of the commit.

    Raises:
        ConfigError: There is no token, the hub does not take it, or the repository has a wrong name or is public.
        CheckpointError: The hub cannot be reached, or failed.
    """
    if get_token() is None:
        raise ConfigError("no token for the hub: run hf auth login, or set HF_TOKEN to one that may write")
    api = HfApi(library_name="v2pe")
    with _explain_refusal(repo_id):
        repo_id = api.create_repo(repo_id, private=not is_public, exist_ok=True).repo_id
        info = api.model_info(repo_id)
        if not is_public and info.private is False:
            raise ConfigError(f"{repo_id} is there already and everybody can read it; add --public, or choose another")
        held = [entry.rfilename for entry in info.siblings or ()]
        stale = [name for name in held if name not in files and any(fnmatch(name, pattern) for pattern in _WEIGHTS)]
        commit = api.create_commit(
            repo_id,
            [
                CommitOperationAdd(CARD, card.encode()),
                *(CommitOperationAdd(name, path) for name, path in files.items()),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message="Checkpoint and model card",
        )
    return str(commit.commit_url)


@contextmanager
def _explain_refusal(repo_id: str) -> Iterator[None]:
    try:
        yield
    except InternVLError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:  # the client wraps what happens in its threads
        cause = error if isinstance(error, HTTPError) else error.__cause__
        response = cause.response if isinstance(cause, HfHubHTTPError) else None
        status = 0 if response is None else response.status_code
        if status == 401:
            raise ConfigError(
                "the hub does not take the token (401); make one that may write at "
                "https://huggingface.co/settings/tokens, then hf auth login"
            ) from error
        if status in (403, 404):
            raise ConfigError(
                f"the token may not write to {repo_id} ({status}); use one that may, or another --repo_id"
            ) from error
        if status == 400:
            raise ConfigError(
                f"the hub refuses what was sent (400): {error}; mend --card, --license or --base_model"
            ) from error
        if status in (409, 412):
            raise CheckpointError(f"{repo_id} was changed meanwhile ({status}); {_AGAIN}") from error
        what = f"the hub failed ({status})" if status else f"the hub cannot be reached ({cause or error})"
        raise CheckpointError(f"{what} before {repo_id} was complete; {_AGAIN}") from error


def _read_repo_id(text: str) -> str:
    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if "/" not in text:
        raise argparse.ArgumentTypeError(f"expected OWNER/NAME, got {text!r}")
    return text


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = CommandParser(
        prog="python -m internvl.tools.export_hub",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="folder to push: a run, or one of its checkpoint-N")
    add(
        "--repo_id",
        type=_read_repo_id,
        required=True,
        metavar="OWNER/NAME",
        help="repository on the hub; made unless it is there",
    )
    add("--scores", type=Path, nargs="+", default=[], metavar="FOLDER", help="result folders of eval.run, for the card")
    add("--base_model", metavar="OWNER/NAME", help="hub id of the base model; default: what run.json says, if it does")
    add("--license", metavar="NAME", help="licence of the weights as the hub abbreviates it: mit, apache-2.0")
    add("--card", type=Path, metavar="FILE", help="a card of your own (what --dry_run prints, edited) in its place")
    add("--public", action="store_true", help="everybody may read it; default: private")
    add("--dry_run", action="store_true", help="print the card, list the files on standard error, send nothing")
    return parser


@command(go_on=_AGAIN)
def main(argv: Sequence[str] | None = None) -> int:
    """Command line entry; returns the exit code."""
    arguments = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # a line per request
    checkpoint = find_checkpoint(arguments.checkpoint)
    config = read_chat_config(checkpoint)
    files = list_hub_files(checkpoint)
    if arguments.card:
        card = arguments.card.read_text(encoding="utf-8")
    else:
        run, summary = read_run(checkpoint)
        card = write_card(
            Facts(
                repo_id=arguments.repo_id,
                config=config,
                run=run,
                summary=summary,
                results=read_scores(arguments.scores, checkpoint),
                base_model=arguments.base_model or find_base_model(run),
                license=arguments.license,
            )
        )
    for name, path in files.items():
        logger.info("%15s  %s", f"{path.stat().st_size:,}", name)
    if arguments.dry_run:
        print(card)
        return 0
    print(push(files, card, arguments.repo_id, is_public=arguments.public))
    return 0


if __name__ == "__main__":
    sys.exit(main())
