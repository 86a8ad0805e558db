"""The suite: experiments in order, a runner, and what their evidence amounts to."""
