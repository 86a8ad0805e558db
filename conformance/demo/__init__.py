"""The main job, end to end: engine, twin and Hugging Face on one workload."""
