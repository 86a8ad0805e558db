"""The inference engine: a torch-free half that decides and a torch half that computes."""
