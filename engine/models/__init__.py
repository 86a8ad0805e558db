"""Model definitions, where models are found, and how one is loaded."""
