"""Templates: text with `{column}` fields. Nothing but a name stands between braces; `{{` and `}}` are braces."""

from collections.abc import Mapping
from string import Formatter

from internvl.errors import ConfigError


def read_template(text: str, *, where: str) -> list[tuple[str, str | None]]:
    """(literal text, name of the field after it, None at the end), in order.

    Raises ConfigError, which begins with `where`, for a brace alone or a field with anything else than a name.
    """
    try:
        parts = list(Formatter().parse(text))
    except ValueError as error:
        raise ConfigError(f"{where}: {error}; write {{{{ and }}}} for braces that are text") from error
    for _, field, specification, conversion in parts:
        if field == "" or specification or conversion:
            raise ConfigError(f"{where}: expected the name of a column between braces, as in {{question}}")
    return [(literal, field) for literal, field, _, _ in parts]


def list_fields(text: str, *, where: str) -> list[str]:
    """The names between braces, each once. Raises ConfigError as `read_template` does."""
    return list(dict.fromkeys(field for _, field in read_template(text, where=where) if field is not None))


def fill_template(text: str, values: Mapping[str, str], *, where: str) -> str:
    """The text with its fields; `values` has all of them. What they hold is text, braces included."""
    return "".join(
        literal + ("" if field is None else values[field]) for literal, field in read_template(text, where=where)
    )
