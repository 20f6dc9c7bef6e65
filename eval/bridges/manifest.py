"""Manifest: what lmms-eval loads by the entry point `lmms_eval.models`, the place of the model class."""


def make_manifest() -> object:
    """lmms-eval's record of the model `v2pe`."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="v2pe", chat_class_path="eval.bridges.lmms_eval.V2PE")
