"""Makes the pages from their templates."""

from typing import Any


def rendered(template: str, **values: Any) -> str:
    """A page from its template. Every text among the values is escaped, and none may be missing.

    Args:
        template: The name of the template's file, in this package.
        values: The values that the template uses.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("evenly.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**values)
