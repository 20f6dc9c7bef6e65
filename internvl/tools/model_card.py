"""Model cards: what the page of a checkpoint says, made from its config, its run and its evaluations.

config.json  -> positions, tiles        run.json, summary.json -> base model, data, settings
scores.json  -> scores with intervals   README.md              <- all of it, after metadata that the hub reads
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from eval.core.result import Scores, TaskResult
from eval.metrics.estimate import wilson_interval
from eval.report.labels import label_setting
from internvl.errors import CheckpointError
from internvl.markdown import format_table
from internvl.model.configuration_internvl_chat import InternVLChatConfig
from internvl.model.positions import has_axes
from internvl.train.run.record import RUN_FILE, SUMMARY_FILE
from internvl.train.state_files import WRONG_CONTENT, read_state_file

# Options of a run that a reader asks for; a run.json has paths besides, which are nobody else's business.
_TOLD = {
    "model": (
        *("freeze_backbone", "freeze_mlp", "freeze_llm", "use_backbone_lora", "use_llm_lora"),
        *("attn_type", "chunk_num", "rope_scaling"),
    ),
    "data": (
        *("rope_pos_id_version", "rope_pos_id_stride", "rope_pos_id_random_strides", "max_seq_length"),
        *("max_packed_tokens", "force_image_size", "max_dynamic_patch", "use_thumbnail", "loss_reduction"),
    ),
    "training": (
        *("learning_rate", "vision_learning_rate", "mlp_learning_rate", "lr_scheduler_type", "warmup_ratio"),
        *("weight_decay", "optim", "per_device_train_batch_size"),
        *("gradient_accumulation_steps", "bf16", "fp16", "seed"),
    ),
}
_TOTALS = ("steps", "samples", "tokens", "final_loss")
_OF_CACHE = re.compile(r"models--(?P<owner>.+?)--(?P<name>[^/]+)/snapshots/")
_TASK_TYPE = "image-text-to-text"


@dataclass(frozen=True)
class Facts:
    """What a card is made from."""

    repo_id: str  # `owner/name` on the hub
    config: InternVLChatConfig
    run: Mapping[str, Any]  # run.json; empty where there is none
    summary: Mapping[str, Any]  # summary.json; empty where there is none
    results: Sequence[TaskResult]  # of this checkpoint
    base_model: str | None  # id on the hub
    license: str | None  # as the hub abbreviates it

    @property
    def name(self) -> str:
        """The model's name without its owner."""
        return self.repo_id.rpartition("/")[2]


def read_run(checkpoint: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """run.json and summary.json of a run's folder, or of the run that a `checkpoint-N` belongs to; empty without them.

    Raises:
        CheckpointError: A file is there and cannot be read.
    """
    folders = [checkpoint, checkpoint.absolute().parent] if checkpoint.name.startswith("checkpoint-") else [checkpoint]
    for folder in folders:
        if (folder / RUN_FILE).exists():
            has_summary = folder == checkpoint and (folder / SUMMARY_FILE).exists()
            return read_state_file(folder / RUN_FILE), read_state_file(folder / SUMMARY_FILE) if has_summary else {}
    return {}, {}


def find_base_model(run: Mapping[str, Any]) -> str | None:
    """The hub id of the model that a run started from; None where that was a folder outside of the hub's cache."""
    found = _OF_CACHE.search(str(run.get("model_path") or ""))
    return f"{found['owner']}/{found['name']}" if found else None


def write_card(facts: Facts) -> str:
    """The card, with its metadata in front.

    Raises:
        CheckpointError: The record of the run has another form.
    """
    try:
        sections = [
            _describe(facts),
            _describe_positions(facts),
            _describe_training(facts),
            _describe_scores(facts.results),
            _describe_use(facts),
            _describe_license(facts),
        ]
    except WRONG_CONTENT as error:
        raise CheckpointError(f"{RUN_FILE} has another form than a run's ({error!r}); move it away") from error
    return str(ModelCard(f"---\n{_make_metadata(facts).to_yaml()}\n---\n\n" + "\n\n".join(sections) + "\n"))


def _make_metadata(facts: Facts) -> ModelCardData:
    scored = [result for result in facts.results if result.headline.estimate is not None]
    return ModelCardData(
        model_name=facts.name,
        base_model=facts.base_model,
        license=facts.license,
        library_name="transformers",
        pipeline_tag=_TASK_TYPE,
        tags=["v2pe", "internvl", "long-context", "custom_code"],
        eval_results=[
            EvalResult(
                task_type=_TASK_TYPE,
                dataset_type=result.task,
                dataset_name=result.task,
                metric_type=result.protocol,
                metric_name=f"{result.protocol}, {label_setting(result.settings)}",
                metric_value=result.headline.score,
            )
            for result in scored
        ]
        or None,
    )


def _describe(facts: Facts) -> str:
    version = facts.run.get("versions", {}).get("v2pe")
    made = f", fine-tuned from {_name_base(facts)} with v2pe {version or '(unknown version)'}" if facts.run else ""
    return (
        f"# {facts.name}\n\nAn InternVL2 model{made}. It can place visual tokens by V2PE, Variable Visual Position "
        "Encoding ([arXiv 2412.09616](https://arxiv.org/abs/2412.09616)): text advances the rotary position by 1, a "
        "visual token by stride / T, with T visual tokens per tile."
    )


def _name_base(facts: Facts) -> str:
    if facts.base_model:
        return f"[{facts.base_model}](https://huggingface.co/{facts.base_model})"
    return f"`{Path(str(facts.run.get('model_path') or 'an unknown model')).name}` (a local folder)"


def _describe_positions(facts: Facts) -> str:
    config = facts.config
    rows = [
        ("positions (`rope_pos_id_version`)", f"`{config.rope_pos_id_version}`"),
        ("stride (`rope_pos_id_stride`)", _write(config.rope_pos_id_stride)),
        ("pixels of a tile", _write(config.force_image_size or config.vision_config.image_size)),
        ("tiles of a picture", f"{config.min_dynamic_patch} to {config.max_dynamic_patch}"),
        ("scaling of positions", _write(getattr(config.llm_config, "rope_scaling", None))),
        ("decoder", config.llm_config.architectures[0] if config.llm_config.architectures else "-"),
    ]
    text = "## Positions\n\n" + _table(("", "of this checkpoint"), rows)
    if config.rope_pos_id_version == "v2pe_rnd":
        text += (
            "\n\nIt was trained with strides drawn per picture. At inference choose one with `rope_pos_id_version` "
            "`v2pe_fix` and `rope_pos_id_stride`: the smaller, the longer the context that fits."
        )
    return text


def _describe_training(facts: Facts) -> str:
    if not facts.run:
        return "## Training\n\nNo record of the training lies beside this checkpoint."
    arguments = facts.run["arguments"]
    rows = [("base model", _name_base(facts))]
    rows += [
        (f"`{name}`", _write(arguments[part][name]))
        for part, names in _TOLD.items()
        for name in names
        if arguments.get(part, {}).get(name)  # neither absent nor switched off
    ]
    rows += [(name.replace("_", " "), _write(facts.summary[name])) for name in _TOTALS if name in facts.summary]
    rows += [
        ("processes, device", f"{facts.run['world_size']}, {facts.run['device']}"),
        ("data sets", ", ".join(f"`{name}`" for name in facts.run["data"]["sources"])),
        ("versions", ", ".join(f"{name} {version}" for name, version in facts.run["versions"].items())),
    ]
    return "## Training\n\n" + _table(("", "of the run"), rows)


def _describe_scores(results: Sequence[TaskResult]) -> str:
    if not results:
        return "## Scores\n\nNone were given."
    rows = [
        (
            f"`{result.task}`",
            label_setting(result.settings),
            result.protocol,
            *_write_scores(result.headline),
            result.source,
        )
        for result in results
    ]
    head = ("task", "positions", "protocol", "score ± standard error", "95 % interval", "questions", "chance", "source")
    return (
        "## Scores\n\n" + _table(head, rows) + "\n\nGreedy answers, scored by the rule that `protocol` names. The "
        "interval is Wilson's, for questions that are independent; other models were not compared."
    )


def _write_scores(scores: Scores) -> tuple[str, str, str, str]:
    estimate = scores.estimate
    chance = "-" if scores.chance is None else f"{scores.chance:.3f}"
    if estimate is None:
        return "answers are not public", "-", str(scores.count), chance
    low, high = wilson_interval(estimate.score, estimate.count)
    return f"{estimate.score:.3f} ± {estimate.stderr:.3f}", f"{low:.3f} to {high:.3f}", str(estimate.count), chance


def _describe_use(facts: Facts) -> str:
    for_vllm = (
        f"v2pe export vllm {facts.name} {facts.name}-vllm --rope_pos_id_stride 16    # with the v2pe-vllm plug-in"
    )
    if has_axes(facts.config.rope_pos_id_version):
        for_vllm = "# The v2pe-vllm plug-in has no positions on several axes."
    return f"""## How to load it

```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("{facts.repo_id}", trust_remote_code=True, dtype="auto").eval()
tokenizer = AutoTokenizer.from_pretrained("{facts.repo_id}", trust_remote_code=True)
```

`trust_remote_code=True` runs the Python files of this repository; read them first. Pictures are cut into tiles by the
`v2pe` package, with which it is easier to ask:

```bash
hf download {facts.repo_id} --local-dir {facts.name}
v2pe chat --checkpoint {facts.name} --image picture.png "What is in the picture?"
```

## How to serve it

```bash
v2pe serve {facts.name}                               # OpenAI-compatible, with a chat page
{for_vllm}
```

Other servers place every visual token one position after the last, which this model answers from only where it was
trained with `default` positions."""


def _describe_license(facts: Facts) -> str:
    weights = f"Weights: `{facts.license}`." if facts.license else "No licence of the weights was stated."
    base = f" That of {_name_base(facts)}, from which they were trained, applies as well." if facts.run else ""
    return f"## Licence\n\n{weights}{base} The Python files are under the MIT licence."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return format_table([head, *rows], is_padded=False)


def _write(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, list):
        return ", ".join(map(_write, value))
    if isinstance(value, dict):
        return f"`{json.dumps(value)}`"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"
