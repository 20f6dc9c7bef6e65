"""What is computed: InternVL2 with V2PE.

The folder depends on torch and transformers only and uses relative imports, so that `save_pretrained` can copy it
beside a checkpoint and `AutoModel.from_pretrained(..., trust_remote_code=True)` loads it anywhere. Importing this
package imports nothing else; `internvl.model.registration.register_auto_classes` makes the Auto classes know it.
"""
