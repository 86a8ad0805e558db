"""The pieces that models are made of, in plain PyTorch."""
