"""How a page is made: one HTML document from a template and the project's styles."""

from typing import Any

import jinja2
from markupsafe import Markup

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.PackageLoader("pagetwin.reports", "templates"),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def styles(*names: str) -> Markup:
    """Style sheets, one behind the other, for a page to hold in itself."""
    assert _ENVIRONMENT.loader is not None
    sheets = (_ENVIRONMENT.loader.get_source(_ENVIRONMENT, name)[0] for name in names)
    return Markup("".join(sheets))


def render(template: str, **values: Any) -> str:
    """The page. A name that the template uses and nobody gave is an error."""
    return _ENVIRONMENT.get_template(template).render(**values)
