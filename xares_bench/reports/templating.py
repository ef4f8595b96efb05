"""Pages: templates become HTML files that hold all they show and ask no network for anything.

Every text goes through the template's escaping. The page's content security policy allows its own script alone,
whatever a label or a prediction holds.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

_TEMPLATES = Path(__file__).with_name("templates")


def rendered(name: str, values: Mapping[str, Any], filters: Mapping[str, Callable[..., str]] | None = None) -> str:
    """A page.

    Args:
        name: Of its template `NAME.html.j2` and its script `NAME.js`.
        values: What the template shows; a name that it does not have is an error.
        filters: What the template does with values.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    script = (_TEMPLATES / f"{name}.js").read_text(encoding="utf-8")
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    return environment.get_template(f"{name}.html.j2").render(
        **values,
        # Files of this package, and the only parts of the page that are not escaped.
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        style=Markup(style),
    )


def json_for_script(data: object) -> Any:
    """JSON that a <script> element can hold: nothing in it ends the element or starts a comment."""
    from markupsafe import Markup

    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
