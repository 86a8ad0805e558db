"""Checkpoints of every format, read as one stream of Hugging Face tensor names and tensors."""
