"""Data set builders: commands that give the same files for the same arguments.

    needles/    needles in long contexts of your own texts and images; `extend` makes MM-NIAH's items longer
    vqa/        long questions about one picture among many
    miniature/  a small retrieval set and bar charts for models that a CPU can train
    corpus/     a folder of texts and images as documents and as pieces of contexts

Shared modules: `forms` (V2PE-Data's records, MM-NIAH's items), `questions`, `contexts`, `lengths`, `model_reader`
(counts tokens), `folders` (finished folders), `parts` (resumable work), `datasheet` and `shortcuts` (checks).
"""
