"""Which files the documentation site has: those of the repository at the same places, so that links work in both.

MkDocs wants all pages in one folder; README.md and its neighbours stand beside it. mkdocs.yml names this hook.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

SHOWN = (
    *("*.md", "LICENSE", "docs/**/*", "examples/*", "benchmarks/results/*.md", "dataset/README.md"),
    *("pretrained/README.md", "pretrained/*/README.md", "integrations/*/README.md"),
    *("internvl/**/*.py", "eval/**/*.py"),  # pages link to source files
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site: these, and what the theme and plugins bring."""
    root = Path(config.config_file_path).parent
    shown = {path for pattern in SHOWN for path in root.glob(pattern) if path.is_file()}
    brought = [file for file in files if file.src_dir != config.docs_dir]
    for path in sorted(shown):
        brought.append(File.generated(config, str(path.relative_to(root)), abs_src_path=str(path)))
    return Files(brought)
