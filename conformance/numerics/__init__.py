"""How far a number may be off: rules for logits, greedy choices and attention outputs."""
