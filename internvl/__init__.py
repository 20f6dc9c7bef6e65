"""Training and inference of long-context vision-language models: InternVL2 with Variable Visual Position Encoding."""

__version__ = "0.1.0"
