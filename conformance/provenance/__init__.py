"""A checkpoint whose every output token names the KV slot that was read, and its judge."""
