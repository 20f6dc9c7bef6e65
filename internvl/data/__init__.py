"""From files to batches: meta json -> records -> documents -> packed rows -> the tensors of one training step.

Each module is one step and knows only the steps before it:

    meta -> records -> storage, video, tiling, transform -> encode -> mixture, packing -> plan -> dataset -> loader
"""
