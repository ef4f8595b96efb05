"""Templates to HTML pages. A page is one file that works offline: styles, scripts, data and audio are inside it.

Labels and predictions can contain anything, so a page defends itself twice: the template escapes every text, and the
content security policy allows no script but the page's own, by its digest.
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
    """Return a page.

    Args:
        name: Of the template `NAME.html.j2` and the script `NAME.js`.
        values: The template's variables; a variable without a value is an error.
        filters: The template's filters.
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
        # Not escaped, as they are files of this package.
        script=Markup(script),
        script_digest=base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii"),
        style=Markup(style),
    )


def json_for_script(data: object) -> Any:
    """Return JSON for a <script> element: nothing in it can end the element or start a comment."""
    from markupsafe import Markup

    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)
