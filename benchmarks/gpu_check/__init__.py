"""The check of a machine with NVIDIA cards: what is right, how fast it is, and how much memory it takes.

    python -m benchmarks.gpu_check [--parts kernels rates ...] [--minutes 10] [--output FOLDER]
    python -m benchmarks.gpu_check --page        # docs/gpu.md from the newest results

A part is a module with a generator `run(job)` of rows. Every part runs in a process of its own, so that one that fails,
or takes the card down, leaves the others alone. Without a card every part runs at tiny size on the CPU.
"""
