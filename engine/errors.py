"""Errors that a user may meet. Each message says what, where, the value, the limit, the remedy."""


class PagetwinError(Exception):
    """Base of the errors that a user can cause or cure; commands exit with 2 on them."""


class ConfigError(PagetwinError, ValueError):
    """A knob, or a combination of knobs, is out of range."""


class RequestError(PagetwinError, ValueError):
    """A request is refused at submission (docs/policy.md P2.5); nothing has changed."""


class ModelError(PagetwinError):
    """A model, checkpoint or tokenizer is missing, damaged or of an unknown kind."""


class TraceError(PagetwinError, ValueError):
    """A trace, scenario or history file cannot be read; the message gives file and line."""


class StepFailed(PagetwinError):
    """An executor could not carry out a step (a device is out of memory, a copy failed). It has
    followed the plan's rows, as always; of what it should have computed and copied nothing
    counts. The engine ends the requests that needed it, and goes on with the others."""
