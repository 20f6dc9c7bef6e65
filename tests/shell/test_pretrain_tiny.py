"""scripts/pretrain_tiny.sh without training: what it would run."""

import subprocess
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_help_is_the_header():
    result = subprocess.run(
        ["sh", "scripts/pretrain_tiny.sh", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("Train InternVL2-Tiny")
    assert "set -eu" not in result.stdout
