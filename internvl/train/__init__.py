"""Training: `internvl_chat_finetune.py` is the command, finetune.py the run, trainer.py its loop."""
