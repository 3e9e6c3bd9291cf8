"""How the pages are made from their templates."""

from typing import Any


def rendered(template: str, **values: Any) -> str:
    """A page. Every text among the values is escaped, and none may be missing.

    Args:
        template: Its file beside this one.
        values: What it shows.
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
