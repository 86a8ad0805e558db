"""The conformance harness: scenarios, histories, checkers and oracles."""
