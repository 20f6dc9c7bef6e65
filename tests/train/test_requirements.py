import pytest

from internvl.errors import ConfigError, DataError, MissingDependencyError
from internvl.train import requirements
from internvl.train.arguments import parse_arguments
from internvl.train.finetune import check_trained
from internvl.train.requirements import check_requirements
from internvl.train.run.counts import Counts
from tests.train.tiny_run import ENTRY, flags, launch, tail


@pytest.fixture
def check(checkpoint, meta, tmp_path, monkeypatch):
    """Check the tiny run's flags with changes, on a machine without a GPU and without further packages."""
    installed = requirements.find_spec
    monkeypatch.setattr(requirements, "has_cuda", lambda: False)
    monkeypatch.setattr(requirements, "get_available_reporting_integrations", lambda: ["mlflow"])
    missing = ("peft", "deepspeed", "bitsandbytes", "galore_torch")
    monkeypatch.setattr(requirements, "find_spec", lambda name: None if name in missing else installed(name))
    return lambda **changes: check_requirements(*parse_arguments(flags(checkpoint, meta, tmp_path / "out", **changes)))


def test_what_is_there_is_taken(check):
    check()
    check(report_to="mlflow")
    check(attn_kernel="cpu_flash", chunk_num=2)


@pytest.mark.parametrize("name", ["wandb", "swanlab", "tensorboard", "comet_ml"])
def test_a_reporter_that_is_not_installed_is_named(check, name):
    with pytest.raises(MissingDependencyError, match=f"--report_to {name}: the package is not installed; pip install"):
        check(report_to=name)


def test_a_release_that_transformers_cannot_report_to_is_refused(check, monkeypatch):
    monkeypatch.setattr(requirements, "get_available_reporting_integrations", lambda: ["swanlab"])
    monkeypatch.setattr(requirements, "version", lambda name: "0.10.3")
    with pytest.raises(MissingDependencyError, match=r"cannot report to swanlab 0\.10\.3; pip install 'swanlab<0\.8'"):
        check(report_to="swanlab")
    monkeypatch.setattr(requirements, "version", lambda name: "0.7.20")
    check(report_to="swanlab")


MISSING = [
    ({"use_llm_lora": 4}, "LoRA needs peft"),
    ({"deepspeed": "zero1.json"}, "needs deepspeed"),
    ({"optim": "paged_adamw_8bit"}, "needs bitsandbytes"),
    ({"optim": "galore_adamw"}, "needs galore_torch: pip install galore-torch"),
]


@pytest.mark.parametrize(("changes", "message"), MISSING)
def test_a_package_that_is_not_installed_is_named(check, changes, message):
    with pytest.raises(MissingDependencyError, match=message):
        check(**changes)


REFUSED = [
    ({"report_to": "paper"}, "--report_to paper: expected none, all, azure_ml"),
    ({"attn_kernel": "flash_attn", "chunk_num": 2}, "flash_attn needs cuda tensors, got cpu"),
    ({"attn_kernel": "flash_attn"}, "flash_attn needs cuda tensors, got cpu"),
    ({"attn_kernel": "ring_flash_attn", "chunk_num": 2}, "ring_flash_attn needs a GPU"),
    ({"attn_kernel": "fast", "chunk_num": 2}, "unknown attention kernel 'fast'"),
    ({"attn_kernel": "cpu_flash"}, "has no effect without shared rows"),
    ({"loss_kernel": "liger"}, "liger needs a GPU"),
    ({"tf32": True}, "--tf32 True needs a GPU"),
    ({"flash_impl": "FA3"}, "--flash_impl FA3 needs a GPU"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_what_this_machine_cannot_do_is_refused(check, changes, message):
    with pytest.raises(ConfigError, match=message):
        check(**changes)


@pytest.mark.slow
def test_processes_write_one_line_together_and_load_nothing(checkpoint, meta, tmp_path):
    arguments = flags(checkpoint, meta, tmp_path / "out", report_to="swanlab")
    result = launch(ENTRY, arguments, num_processes=2)
    assert result.returncode != 0
    assert result.stderr.count("error: ") == 1, tail(result)
    assert "error: --report_to swanlab: the package is not installed" in result.stderr
    assert not (tmp_path / "out").exists()


class Trainer:
    """What `check_trained` asks of a trainer whose run had so many targets."""

    def __init__(self, targets: int):
        self.state, self.args, self.window, self.totals = self, self, self, self
        self.global_step, self.num_skipped, self.bad_steps, self.output_dir = 3, 7, 0, "out"
        self.counts = Counts.from_json({"targets": targets}, ("a",))

    def collect_counts(self):
        pass


def test_a_run_that_trained_on_nothing_has_failed():
    check_trained(Trainer(1))
    with pytest.raises(DataError, match=r"nothing was trained on in 3 steps: .*7 could not be used"):
        check_trained(Trainer(0))
