"""Settings of the whole suite."""

from hypothesis import settings

settings.register_profile("shared", deadline=None)  # tests run on shared machines; time is measured in benchmarks/
settings.load_profile("shared")
