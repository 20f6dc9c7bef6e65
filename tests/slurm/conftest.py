from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, explain_absence
from tests.slurm.job import PRETRAIN, Job, settings
from tests.train.conftest import checkpoint, meta

__all__ = ["checkpoint", "cluster", "meta"]


@pytest.fixture(scope="session")
def cluster():
    """A running slurm of two nodes, or a skip that says why there is none."""
    if reason := explain_absence():
        pytest.skip(reason)
    with Cluster() as running:
        yield running


@pytest.fixture
def submit(cluster, checkpoint, meta, tmp_path):
    """Start a recipe on the cluster; its job ends with the test."""
    jobs = []

    def start(recipe: Path = PRETRAIN, *flags: str, **changes: str) -> Job:
        jobs.append(Job(cluster, recipe, *flags, **settings(checkpoint, meta, tmp_path, **changes)))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()
