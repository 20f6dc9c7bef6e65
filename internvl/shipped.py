"""Files that travel with the code: in a checkout they stand where users look, in an installed package inside of it."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def find_shipped(folder: str) -> Path:
    """The folder that is called so at the top of the repository, such as `examples`."""
    inside = _PACKAGE / "shipped" / folder
    return inside if inside.is_dir() else _PACKAGE.parent / folder
