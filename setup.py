"""What pyproject.toml cannot say: files at the top of the repository that an installed package carries inside of it."""

from setuptools import find_packages, setup

# internvl/shipped.py finds them, here and there.
SHIPPED = ("examples", "examples/own_benchmark", "shell/deepspeed", "pretrained/InternVL2-Tiny")


def name_package(folder: str) -> str:
    """The package that a folder becomes: it has no Python files of its own that anybody imports."""
    return f"internvl.shipped.{folder.replace('/', '.')}"


# Which of their files are carried: pyproject.toml.
setup(
    packages=[*find_packages(include=["internvl*", "eval*", "studies*"]), *map(name_package, SHIPPED)],
    package_dir={name_package(folder): folder for folder in SHIPPED},
)
