"""Server: a checkpoint behind OpenAI's chat completions, with V2PE's own fields."""
