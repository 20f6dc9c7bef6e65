import pytest

from tests.slurm.cluster import Cluster, explain_absence
from tests.train.conftest import checkpoint, meta

__all__ = ["checkpoint", "cluster", "meta"]


@pytest.fixture(scope="session")
def cluster():
    """A running slurm of two nodes, or a skip that says why there is none."""
    if reason := explain_absence():
        pytest.skip(reason)
    with Cluster() as running:
        yield running
