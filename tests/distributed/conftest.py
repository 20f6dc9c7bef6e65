from tests.train.conftest import checkpoint, meta

__all__ = ["checkpoint", "meta"]
