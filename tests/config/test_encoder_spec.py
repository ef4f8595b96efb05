from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from xares_bench.config.encoder_spec import find_module, parse_encoder_spec
from xares_bench.core.errors import EncoderSpecError

ONE_CLASS = "from torch.nn import Module\n\n\nclass Helper: ...\n\n\nclass MyEncoder(Module): ...\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder: Path, text: str, name: str = "enc.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_is_searched_for_its_one_encoder_class(folder: Path) -> None:
    path = write(folder, ONE_CLASS, "sub/enc.py")
    spec = parse_encoder_spec("sub/enc.py", '{"layer": 6}')
    assert (spec.file, spec.module, spec.class_name) == (path, None, "MyEncoder")
    assert spec.arguments == {"layer": 6}
    assert spec.text == "sub/enc.py"


def test_a_file_may_lie_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "there", ONE_CLASS, "my enc-1.py")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert parse_encoder_spec(str(path)).file == path
    assert parse_encoder_spec(str(path)).arguments == {}


@pytest.mark.parametrize(
    "text",
    [
        "class AEncoder: ...\nclass BEncoder: ...",
        "try:\n    import torch\nexcept ImportError:\n    class BEncoder: ...\nelse:\n    class BEncoder(Base): ...",
        "if True:\n    class BEncoder: ...\n",
        "class Other: ...\nBEncoder = Other",
        "class BEncoder: ...",
    ],
)
def test_a_class_can_be_named(folder: Path, text: str) -> None:
    write(folder, text)
    assert parse_encoder_spec("enc.py::BEncoder").class_name == "BEncoder"


def test_imported_classes_do_not_count(folder: Path) -> None:
    write(folder, "from there import OtherEncoder\nfrom here import *\n" + ONE_CLASS)
    assert parse_encoder_spec("enc.py").class_name == "MyEncoder"


@pytest.mark.parametrize(
    ("text", "source", "words"),
    [
        ("enc.py", "class Model: ...\nclass Other: ...", ["no class", "Model, Other", "file.py::ClassName"]),
        ("enc.py", "", ["no class", "found no class"]),
        ("enc.py", "from there import AEncoder", ["no class", "imported classes do not count"]),
        ("enc.py", "def f():\n    class AEncoder: ...", ["no class"]),
        ("enc.py", "class AEncoder: ...\nclass BEncoder: ...", ["2 classes", "enc.py::AEncoder or enc.py::BEncoder"]),
        ("enc.py", "class AEncoder:\n    def f(self:\n", ["syntax error in line 2", "fix"]),
        ("enc.py", "x = '\0'", ["enc.py", "null bytes", "fix"]),
        (
            "enc.py::CEncoder",
            "class AEncoder: ...",
            ["'CEncoder'", "found AEncoder", "name one of its classes"],
        ),
        ("enc.py::AEncoder", "from there import AEncoder", ["only imported", "dotted path"]),
        ("enc.py::", "class AEncoder: ...", ["no class ''", "found AEncoder"]),
        ("gone.py", "", ["no file gone.py", "check the path"]),
        ("sub/gone.py::AEncoder", "", ["no file sub/gone.py"]),
        ("./enc", "class AEncoder: ...", ["no file enc", "did you mean enc.py?"]),
        (".", "", ["directory", "path/to/file.py"]),
        ("folder", "", ["directory", "path/to/file.py"]),
        ("folder/weights.pt", "", ["not a Python file"]),
        ("", "", ["empty", "path/to/file.py"]),
        ("hf:", "", ["'' is neither a folder", "nor a valid name on the hub", "hf:openai/whisper-base"]),
        ("hf:@main", "", ["'' is neither a folder", "nor a valid name on the hub"]),
        ("hf:./gone", "", ["'./gone' is neither a folder", "nor a valid name on the hub"]),
        ("hf:a/b/c", "", ["'a/b/c' is neither a folder"]),
        ("hf:enc.py", "", ["'enc.py' is a file, not a folder", "--encoder=enc.py"]),
        ("hf:owner/name@", "", ["no revision after the @"]),
        ("hf:folder@v1", "", ["folder is a folder, and folders have no revisions"]),
        ("MyEncoder", "", ["neither a Python file nor a dotted path", "package.module.ClassName"]),
        ("my-package.MyEncoder", "", ["neither a Python file nor a dotted path"]),
        ("no_such_package.encoders.MyEncoder", "", ["no module 'no_such_package.encoders'", "check the spelling"]),
        ("enc.deeper.MyEncoder", "", ["no module 'enc.deeper'"]),
    ],
)
def test_a_wrong_specification_is_told_in_one_line(folder: Path, text: str, source: str, words: list[str]) -> None:
    write(folder, source)
    write(folder, "", "folder/weights.pt")
    with pytest.raises(EncoderSpecError) as caught:
        parse_encoder_spec(text)
    message = str(caught.value)
    assert "\n" not in message
    assert [word for word in words if word not in message] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("{layer: 6}", "not JSON"),
        ("", "not JSON"),
        ("[1, 2]", "found a list"),
        ('"six"', "found a string"),
        ("6", "found a bare value"),
        ("null", "found null"),
        ('{"x": NaN}', "NaN is not a JSON number"),
        ('{"x": 1e999}', "1e999 is larger than any number"),
    ],
)
def test_arguments_must_be_a_json_object(folder: Path, arguments: str, words: str) -> None:
    write(folder, ONE_CLASS)
    with pytest.raises(EncoderSpecError, match=words) as caught:
        parse_encoder_spec("enc.py", arguments)
    assert """--encoder-args='{"layer": 6}'""" in str(caught.value)


def test_an_argument_given_twice_is_refused(folder: Path) -> None:
    write(folder, ONE_CLASS)
    said = r"the key 'layer' is repeated: line 1, column 2 and line 1, column 14; give each key once$"
    with pytest.raises(EncoderSpecError, match=said):
        parse_encoder_spec("enc.py", '{"layer": 6, "layer": 7}')


def test_a_misspelt_class_has_a_hint(folder: Path) -> None:
    write(folder, ONE_CLASS)
    with pytest.raises(EncoderSpecError, match=r"name one of its classes; did you mean MyEncoder\?$"):
        parse_encoder_spec("enc.py::Myencoder")


def test_home_and_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, ONE_CLASS, "encoders/enc.py")
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ENCODERS", str(path.parent))
    for text in ("~/encoders/enc.py", "~/encoders/enc.py::MyEncoder", "$ENCODERS/enc.py", "${ENCODERS}/enc.py"):
        assert parse_encoder_spec(text).file == path
    assert parse_encoder_spec("hf:~/model").place["model"] == str(tmp_path / "model")


@pytest.mark.parametrize(
    ("text", "model", "revision", "name"),
    [
        ("hf:openai/whisper-base", "openai/whisper-base", None, "whisper-base"),
        ("hf:gpt2", "gpt2", None, "gpt2"),
        ("hf:owner/name@v1.0", "owner/name", "v1.0", "name"),
        ("hf:owner/name@refs/pr/1", "owner/name", "refs/pr/1", "name"),
        ("hf:models/mine", "FOLDER/models/mine", None, "mine"),
        ("hf:./models/mine/", "FOLDER/models/mine", None, "mine"),
        ("hf:models/at@home", "FOLDER/models/at@home", None, "at-home"),
        ("hf:models/über mir", "FOLDER/models/über mir", None, "ber-mir"),
        ("hf:models/...", "FOLDER/models/...", None, "HubEncoder"),
    ],
)
def test_a_hub_model_is_our_wrapper_with_a_place(
    folder: Path, text: str, model: str, revision: str | None, name: str
) -> None:
    for model_name in ("mine", "at@home", "über mir", "..."):
        (folder / "models" / model_name).mkdir(parents=True)
    spec = parse_encoder_spec(text, '{"layer": 6}')
    assert (spec.file, spec.module, spec.class_name) == (None, "xares_bench.encoders.hugging_face", "HubEncoder")
    assert spec.arguments == {"layer": 6}
    assert spec.place == {"model": model.replace("FOLDER", str(folder)), "revision": revision}
    assert spec.name == name


@pytest.mark.parametrize("argument", ["model", "revision"])
def test_arguments_say_nothing_that_the_specification_says(argument: str) -> None:
    with pytest.raises(EncoderSpecError, match=f"--encoder-args gives '{argument}', which --encoder already"):
        parse_encoder_spec("hf:owner/name", f'{{"{argument}": "x"}}')


def test_an_encoder_of_ones_own_is_called_by_its_class(folder: Path) -> None:
    write(folder, ONE_CLASS)
    spec = parse_encoder_spec("enc.py", '{"model": "x"}')
    assert (spec.name, spec.place, spec.arguments) == ("MyEncoder", {}, {"model": "x"})


def test_a_dotted_path_may_lie_in_the_current_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    write(folder, "raise AssertionError('imported')", "regular/__init__.py")
    write(folder, "raise AssertionError('imported')", "regular/enc.py")
    write(folder, "raise AssertionError('imported')", "namespace/inner/enc.py")
    for module in ("regular.enc", "namespace.inner.enc"):
        spec = parse_encoder_spec(f"{module}.MyEncoder")
        assert (spec.file, spec.module, spec.class_name) == (None, module, "MyEncoder")
    assert str(folder) not in sys.path


def test_a_module_is_found_without_importing_its_parents(tmp_path: Path) -> None:
    found = find_module("importlib.metadata", tmp_path)
    assert found is not None
    assert found.origin == sys.modules["importlib.metadata"].__file__
    assert find_module("importlib.nothing", tmp_path) is None
    assert find_module("__main__.nothing", tmp_path) is None


def test_reading_a_specification_imports_no_torch() -> None:
    code = (
        "import sys; import xares_bench.encoders.clauses; "
        "from xares_bench.config.encoder_spec import parse_encoder_spec; "
        "parse_encoder_spec('torch.nn.modules.linear.Identity'); parse_encoder_spec('hf:owner/name@v1'); "
        "print({'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("microsoft/wavlm-base", "a model of the hub has a prefix: --encoder=hf:microsoft/wavlm-base"),
        ("microsoft/wavlm-base@main", "a model of the hub has a prefix: --encoder=hf:microsoft/wavlm-base@main"),
        ("enc.py:MyEncoder", "a class follows two colons: --encoder=enc.py::MyEncoder"),
        ("mylab/enc.py:MyEncoder", "check the path"),
        ("mylab/enc.py", "check the path"),
        ("mylab/encoders", "did you mean mylab/encoders.py?"),
        (
            "mylab.encoders",
            "this is a module, not a class; name a class in it: --encoder=mylab.encoders.AEncoder or "
            "--encoder=mylab.encoders.BEncoder",
        ),
        ("mylab.helpers", "this is a module, not a class; name a class in it: it defines none that ends in Encoder"),
        (
            "mylab/related.py",
            "line 2 has a relative import, and a file alone is in no package; give the dotted path of the class "
            "instead, as in --encoder=mylab.related.ClassName",
        ),
    ],
)
def test_hints(text: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mylab").mkdir()
    (tmp_path / "enc.py").write_text("class MyEncoder: pass", encoding="utf-8")
    for name, source in {
        "__init__": "",
        "encoders": "class AEncoder: pass\nclass BEncoder: pass",
        "helpers": "class Helper: pass",
        "related": "import torch\nfrom .helpers import Helper\nclass CEncoder: pass",
    }.items():
        (tmp_path / "mylab" / f"{name}.py").write_text(source, encoding="utf-8")
    with pytest.raises(EncoderSpecError) as raised:
        parse_encoder_spec(text)
    assert str(raised.value).startswith(f"--encoder={text}: ")
    assert str(raised.value).endswith(hint)


@pytest.mark.parametrize("package", ["from mylab2.AEncoder import AEncoder", "from mylab2.AEncoder import *"])
def test_a_class_with_the_name_of_its_module_is_a_class(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mylab2").mkdir()
    (tmp_path / "mylab2" / "__init__.py").write_text(package, encoding="utf-8")
    (tmp_path / "mylab2" / "AEncoder.py").write_text("class AEncoder: pass", encoding="utf-8")
    spec = parse_encoder_spec("mylab2.AEncoder")
    assert (spec.module, spec.class_name) == ("mylab2", "AEncoder")


def test_a_relative_import_that_may_fail_is_left_to_the_file(folder: Path) -> None:
    write(folder, "try:\n    from .a import b\nexcept ImportError:\n    b = 1\nclass MyEncoder: pass")
    assert parse_encoder_spec("enc.py").class_name == "MyEncoder"
