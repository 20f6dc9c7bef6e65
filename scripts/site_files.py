"""Which files the documentation site has: those of the repository at the same places, so that links work in both.

MkDocs wants all pages in one folder; README.md and its neighbours stand beside it. mkdocs.yml names this hook.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SHOWN = (
    *("*.md", "LICENSE", "docs/**/*", "examples/*", "benchmarks/results/*.md", "dataset/README.md"),
    *("pretrained/README.md", "pretrained/*/README.md"),
    *("internvl/**/*.py", "eval/**/*.py"),  # pages link to source files
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site; what themes and plugins add comes later."""
    root = Path(config.config_file_path).parent
    paths = {path for pattern in SHOWN for path in root.glob(pattern) if path.is_file()}
    return Files(
        [File.generated(config, str(path.relative_to(root)), abs_src_path=str(path)) for path in sorted(paths)]
    )
