from __future__ import annotations

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

from xares_bench.reports import templating
from xares_bench.reports.templating import json_for_script, rendered

PAGE = """<html><style>{{ style }}</style>
{% if shown %}
<p title="{{ text }}">{{ text|loud }}</p>
{% endif %}
<script type="application/json">{{ data }}</script>
<script data-digest="{{ script_digest }}">{{ script }}</script></html>
"""
SCRIPT = "if (1 < 2 && 3 > 2) { alert('hello'); }"
MARKUP = """</p><script>alert("x")</script>'"""


@pytest.fixture(autouse=True)
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a template of its own."""
    (tmp_path / "page.html.j2").write_text(PAGE, encoding="utf-8")
    (tmp_path / "page.js").write_text(SCRIPT, encoding="utf-8")
    (tmp_path / "report.css").write_text("p > b { color: red; }", encoding="utf-8")
    monkeypatch.setattr(templating, "_TEMPLATES", tmp_path)
    return tmp_path


def page(**values: object) -> str:
    return rendered("page", {"shown": True, "text": "", "data": "", **values}, {"loud": str.upper})


def test_texts_are_escaped_also_after_a_filter_and_script_and_style_are_not() -> None:
    made = page(text=MARKUP)
    assert MARKUP not in made
    assert MARKUP.upper() not in made
    assert "&lt;SCRIPT&gt;ALERT(" in made
    assert 'title="&lt;/p&gt;&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;&#39;"' in made
    assert SCRIPT in made
    assert "p > b {" in made


def test_the_digest_is_that_of_the_script_in_the_page() -> None:
    found = re.search(r'data-digest="([^"]+)">(.*)</script>', page())
    assert found is not None
    digest, script = found.groups()
    assert digest == base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def test_a_variable_without_a_value_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="'shown' is undefined"):
        rendered("page", {"text": "", "data": ""}, {"loud": str.upper})


def test_lines_of_template_code_leave_no_empty_lines() -> None:
    assert "\n\n" not in page()


def test_json_in_a_script_cannot_end_it_and_reads_back_the_same() -> None:
    data = [{"text": "</script><!-- & \u2028\u2029 狗叫"}, None, 0.5]
    text = str(json_for_script(data))
    assert not set("<>&\u2028\u2029") & set(text)
    assert "狗叫" in text
    assert json.loads(text) == data
    assert text in page(data=json_for_script(data)), "it is not escaped a second time"
