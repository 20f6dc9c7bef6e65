"""Names of the public V2PE and InternVL2 code, and what to use here: one table for flags, tasks, files and modules.

A name that still has a meaning is understood (`taken_as`). Any other is refused with one line that says what to use.
Parsers, the task registry and the finder of modules below read this table; docs/migration.md is printed from it
(`python -m internvl.tools.migration_page`).
"""

from collections.abc import Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import NamedTuple

from internvl.errors import ConfigError


class Moved(NamedTuple):
    """What became of an old name."""

    use: str  # what to use: a phrase that may follow the name
    taken_as: str | None = None  # the name that is understood in its place
    harmless: bool | int | float | str | None = None  # flags: the value that asks for nothing, and is accepted


ANY = "any value"

_COMPRESSION = "belonged to an abandoned sequence-compression experiment; remove the flag"
_ASSEMBLE = "belongs to `python -m internvl.tools.assemble`; give what it makes as --model_name_or_path"
_EVALUATION = "must be no: evaluate checkpoints with scripts/evaluate_mmniah.sh and its like"
_NO_EVALUATION = "is not available: evaluate checkpoints with scripts/evaluate_mmniah.sh and its like"

TRAINING_FLAGS: dict[str, Moved] = {
    "compress_seq": Moved(_COMPRESSION, harmless=False),
    "interaction": Moved(_COMPRESSION, harmless=True),
    "fuse_method": Moved(_COMPRESSION, harmless="add"),
    "compress_method": Moved(_COMPRESSION, harmless="avg"),
    "final_size": Moved(_COMPRESSION, harmless=100),
    "neftune_alpha": Moved("was stored and never read; use --neftune_noise_alpha"),
    "strict_mode": Moved("padded rows to full length; rows are never padded here, remove the flag", harmless=False),
    "replacement": Moved("is the only behaviour: data continues with the next epoch; remove the flag", harmless=False),
    "allow_overflow": Moved("cut documents to fit a row; raise --max_packed_tokens instead", harmless=False),
    "group_by_length": Moved("has no meaning for packed rows; remove the flag", harmless=False),
    "evaluation_strategy": Moved(_EVALUATION, harmless="no"),
    "vision_path": Moved(_ASSEMBLE),
    "llm_path": Moved(_ASSEMBLE),
    "use_custom_trainer": Moved(
        "chose layer-wise learning-rate decay; use --vit_layer_decay_rate, --vision_learning_rate and "
        "--mlp_learning_rate, which need no such switch",
        harmless=False,
    ),
    "scale": Moved("(learning-rate factor of layer scales) is not available; remove the flag", harmless=25.0),
    "img_emb_down_sample_ratio": Moved("is not available; set --down_sample_ratio as the checkpoint has it"),
    "use_liger": Moved("is now --loss_kernel liger", harmless=False),
    "use_fast_tokenizer": Moved("is not available: the checkpoint's own tokenizer is taken", harmless=False),
    "use_chunkTrainer": Moved("is --attn_type ring with --chunk_num", harmless=True),
}
# Flags of transformers' TrainingArguments that must keep its default.
FIXED_TRAINING_FLAGS: dict[str, str] = {
    "eval_strategy": _EVALUATION,
    "label_smoothing_factor": "is not available: the loss is computed inside the model; remove the flag",
    "auto_find_batch_size": "is not available: a batch is one row; lower --max_packed_tokens instead",
    "do_eval": _NO_EVALUATION,
    "do_predict": _NO_EVALUATION,
    "load_best_model_at_end": "needs evaluation during training, which is not available; remove the flag",
}

_TASK_DATA = "is not needed: a task knows its files below --data_root"
_QUANTISED = "is not available: use --dtype bfloat16; --kv_cache quantized saves memory for long prompts"
_TILES = "is a task's own; --max_num sets the largest number of tiles per image"

# Names as `python -m eval.run` reads them: - and _ are one.
EVALUATION_FLAGS: dict[str, Moved] = {
    "datasets": Moved("is now --tasks", taken_as="tasks"),
    "task": Moved("is now --tasks", taken_as="tasks"),
    "dataset_name": Moved("is now --tasks", taken_as="tasks"),
    "out_dir": Moved("is now --out", taken_as="out"),
    "outputs_dir": Moved("is now --out", taken_as="out"),
    "output_dir": Moved("is now --out", taken_as="out"),
    "data_dir": Moved("is now --data_root, the folder of all benchmarks"),
    "num_gpus_per_rank": Moved("is now --gpus_per_task", taken_as="gpus_per_task"),
    "val_length": Moved("is now --limit", harmless=-1),
    "max_dynamic_patch": Moved("is now --max_num", taken_as="max_num"),
    "interp": Moved("is now --rope_scaling, such as linear:4 or dynamic:4", harmless="None"),
    "factor": Moved("is part of --rope_scaling, such as linear:4", harmless=1.0),
    "combine_image": Moved("is part of the task: --tasks milebench/ALFRED-combined-1"),
    "dynamic": Moved("has no effect: images are always cut into tiles, --max_num 1 leaves one", harmless=True),
    "dynamic_image_size": Moved(_TILES, harmless=True),
    "resize_image": Moved(_TILES),
    "num_segments": Moved("is a task's own: the published 16 frames of MVBench"),
    "few_shot": Moved("was read and not used; remove the flag", harmless=0),
    "num_workers": Moved("is not needed: pictures are read by the process that asks", harmless=ANY),
    "max_context_len": Moved("is not available: prompts are not cut; remove the flag", harmless=512000),
    "n_tokens_per_image": Moved("is the checkpoint's own; remove the flag", harmless=256),
    "auto": Moved("is now --gpus_per_task N: the layers of a model are spread over N GPUs"),
    "load_in_8bit": Moved(_QUANTISED),
    "load_in_4bit": Moved(_QUANTISED),
    "load_8bit": Moved(_QUANTISED),
    "load_4bit": Moved(_QUANTISED),
    "cot": Moved("is not available: prompts are those of the published numbers, see --prompts"),
    "question_file": Moved(_TASK_DATA),
    "image_folder": Moved(_TASK_DATA),
    "file": Moved(_TASK_DATA),
    "root": Moved(_TASK_DATA),
    "bsz": Moved("is now --batch_size", harmless=1),
    "model_configs": Moved("was read and not used; remove the flag"),
}


def _is_task(name: str) -> Moved:
    return Moved(f"is `{name}`", taken_as=name)


_NOT_EVALUATED = "is not evaluated here: docs/bridges.md shows how lmms-eval and VLMEvalKit ask a checkpoint"

TASKS: dict[str, Moved] = {
    "chartqa_test_human": _is_task("vqa/chartqa-test-human"),
    "chartqa_test_augmented": _is_task("vqa/chartqa-test-augmented"),
    "docvqa_val": _is_task("vqa/docvqa-val"),
    "docvqa_test": _is_task("vqa/docvqa-test"),
    "infographicsvqa_val": _is_task("vqa/infovqa-val"),
    "infographicsvqa_test": _is_task("vqa/infovqa-test"),
    "ai2diagram_test": _is_task("vqa/ai2d-test"),
    "textvqa_val": _is_task("vqa/textvqa-val"),
    "textvqa_val_ocr": _is_task("vqa/textvqa-val-ocr"),
    "vqav2_val": _is_task("vqa/vqav2-val"),
    "vqav2_testdev": _is_task("vqa/vqav2-testdev"),
    "okvqa_val": _is_task("vqa/okvqa-val"),
    "vizwiz_val": _is_task("vqa/vizwiz-val"),
    "vizwiz_test": _is_task("vqa/vizwiz-test"),
    "gqa_testdev_llava": _is_task("vqa/gqa-testdev"),
    "gqa_testdev": _is_task("vqa/gqa-testdev-balanced"),
    "ocrvqa_val": _is_task("vqa/ocrvqa-val"),
    "ocrvqa_test": _is_task("vqa/ocrvqa-test"),
    "sqa_test": _is_task("scienceqa/test"),
    "SEEDv1": _is_task("seed/image"),
    "MMMU_dev": _is_task("mmmu/dev"),
    "MMMU_validation": _is_task("mmmu/val"),
    "MMMU_test": _is_task("mmmu/test"),
    "mmbench_dev_20230712": _is_task("mmbench/dev-en"),
    "mmbench_dev_cn_20231003": _is_task("mmbench/dev-cn"),
    "mmbench_test_en_20231003": _is_task("mmbench/test-en"),
    "mmbench_test_cn_20231003": _is_task("mmbench/test-cn"),
    "mmbench_dev_en_20231003": Moved("is not read; `mmbench/dev-en` reads mmbench_dev_20230712.tsv"),
    "ccbench_dev_cn": _is_task("ccbench/dev"),
    **{
        name: Moved(_NOT_EVALUATED)
        for name in (
            *("caption", "caption-coco", "caption-flickr30k", "caption-nocaps", "cmmmu", "llava-bench"),
            *("mathvista-test", "mathvista-testmini", "mme", "mmvet", "mmvp", "refcoco", "refcoco-val", "tiny_lvlm"),
            *("mmmu-dev-cot", "mmmu-val-cot", "mmmu-test-cot"),
        )
    },
}

DEEPSPEED_CONFIGS: dict[str, Moved] = {
    old: Moved(f"is `{new}`", taken_as=new)
    for old, new in {
        "zero_stage1_config.json": "shell/deepspeed/zero1.json",
        "zero_stage2_config.json": "shell/deepspeed/zero2.json",
        "zero_stage3_config.json": "shell/deepspeed/zero3.json",
        "zero_stage3_config_34b.json": "shell/deepspeed/zero3.json",
        "zero_stage3_config_70b.json": "shell/deepspeed/zero3.json",
        "zero_stage3_config_100b.json": "shell/deepspeed/zero3.json",
    }.items()
}


def _evaluate(tasks: str) -> Moved:
    return Moved(f"is `python -m eval.run --checkpoint CKPT --tasks {tasks}`")


_SCORE = Moved("is `python -m eval.score FOLDER`; a run scores its answers itself")
_OTHER_TRAINING = "is not part of this project, which fine-tunes: `internvl/train/internvl_chat_finetune.py`"

SCRIPTS: dict[str, Moved] = {
    "eval/vqa/evaluate_vqa.py": _evaluate("vqa/docvqa-val"),
    "eval/vqa/convert_gqa_for_eval.py": _SCORE,
    "eval/vqa/textvqa_eval.py": _SCORE,
    "eval/vqa/infographicsvqa_eval.py": _SCORE,
    "eval/pope/evaluate_pope.py": _evaluate("pope"),
    "eval/pope/eval_pope.py": _SCORE,
    "eval/scienceqa/evaluate_scienceqa.py": _evaluate("scienceqa"),
    "eval/seed/evaluate_seed.py": _evaluate("seed"),
    "eval/seed/calculation.py": _SCORE,
    "eval/mmbench/evaluate_mmbench.py": _evaluate("mmbench"),
    "eval/mmmu/evaluate_mmmu.py": _evaluate("mmmu/val"),
    "eval/mmmu/main_eval_only.py": _SCORE,
    "eval/mvbench/evaluate_mvbench.py": _evaluate("mvbench"),
    "eval/mm_niah/eval_mm_niah.py": _evaluate("mm_niah/retrieval-image-test"),
    "eval/mm_niah/eval_mm_niah_long.py": _evaluate("mm_niah_long/retrieval-image-test-1M --ring_attn"),
    "eval/mm_niah/calculate_scores.py": _SCORE,
    "eval/milebench/eval_milebench.py": _evaluate("milebench"),
    "eval/milebench/evaluate.py": _SCORE,
    "eval/milebench/score.py": _SCORE,
    "eval/milebench/combine_images.py": Moved("is `python -m eval.convert.milebench FOLDER`"),
    "eval/longvqa/eval_longvqa.py": _evaluate("longvqa/chartqa-32k"),
    "eval/longvqa/calculate_scores.py": _SCORE,
    "internvl/train/internvl_chat_pretrain.py": Moved(_OTHER_TRAINING),
    "internvl/train/internvl_chat_dpo.py": Moved(_OTHER_TRAINING),
    "internvl/train/internvl_chat_mpo.py": Moved(_OTHER_TRAINING),
    "internvl/serve/model_worker.py": Moved("is `python -m internvl.serve CKPT`, with OpenAI's chat completions"),
}

_UNPATCHED = "is not needed: we patch no other library; rows are made in internvl.data, shared in internvl.parallel"

MODULES: dict[str, Moved] = {
    "internvl.conversation": Moved("is `internvl.model.conversation`"),
    "internvl.dist_utils": Moved("is `internvl.parallel.launch`"),
    "internvl.v2pe_utils": Moved("is `internvl.model.v2pe`"),
    "internvl.compression": Moved("is not available: an abandoned experiment"),
    "internvl.patch": Moved(_UNPATCHED),
    "internvl.model.internvl_chat": Moved(
        "is `internvl.model.modeling_internvl_chat`, `internvl.model.configuration_internvl_chat` and "
        "`internvl.model.modeling_intern_vit`"
    ),
    "internvl.model.internlm2": Moved(
        "is `internvl.model.modeling_internlm2` and `internvl.model.tokenization_internlm2`"
    ),
    "internvl.model.phi3": Moved("is `internvl.model.language_models`, which takes transformers' Phi3"),
    "internvl.model.internvl_chat_with_qllama": Moved("is not available: InternVL 1.0's model"),
    "internvl.train.constants": Moved("is `internvl.model.constants`"),
    "internvl.train.dataset": Moved("is `internvl.data.tiling`, `internvl.data.transform` and `internvl.data.encode`"),
    "internvl.train.dataset_packed": Moved("is `internvl.data.packing`"),
    "internvl.train.compress_seq_trainer": Moved("is `internvl.train.trainer`, with --attn_type ring"),
    "internvl.train.trainer_monkey_patch": Moved("is `internvl.train.parameter_groups`"),
    "internvl.train.trainer_dpo": Moved(_OTHER_TRAINING),
}


def find_module(name: str) -> str | None:
    """What to use instead of a module of the public code, or of the package that it is in; None for other names."""
    scripts = {path.removesuffix(".py").replace("/", "."): moved for path, moved in SCRIPTS.items()}
    for old, moved in {**MODULES, **scripts}.items():
        if f"{old}.".startswith(f"{name}.") or name.startswith(f"{old}."):
            return f"{old} of the public code {moved.use.replace('`', '')}"
    return None


class _Finder(MetaPathFinder):
    """Asked after all others: a module of the public code that is not here is an error that names the new place."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Never finds anything. Raises ModuleNotFoundError for a name of the table."""
        if name.startswith(("internvl.", "eval.")) and (use := find_module(name)):
            raise ModuleNotFoundError(f"{use} (docs/migration.md)", name=name)
        return None


FINDER = _Finder()


def check_flag(flag: str, value: object, table: Mapping[str, Moved]) -> None:
    """Check that an old flag asks for nothing.

    Raises:
        ConfigError: It does; the message says what to use.
    """
    moved = table[flag]
    if value is not None and str(value) != str(moved.harmless) and moved.harmless != ANY:
        raise ConfigError(f"--{flag}{'' if value is True else f' {value}'} {moved.use}")
