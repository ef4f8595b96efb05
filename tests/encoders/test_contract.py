from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from xares_bench.config.encoder_spec import parse_encoder_spec
from xares_bench.core.store import Store
from xares_bench.encoders.clauses import CLAUSES
from xares_bench.encoders.contract import check_contract
from xares_bench.encoders.contract_report import ContractReport

CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parents[2] / "examples"

IMPORTS = "import torch\nfrom torch import nn\n\n"
# Forty frames a second of four samples each; the tests below change a line of it.
GOOD = (
    IMPORTS
    + """class GoodEncoder(nn.Module):
    def __init__(self, scale=1.0):
        super().__init__()
        self.output_dim = 4
        self.scale = scale

    def forward(self, audio, mask=None):
        frames = audio.unfold(1, 400, 400)[..., :4]
        keep = None if mask is None else mask.unfold(1, 400, 400)[..., -1]
        return self.scale * frames, keep
"""
)

Checker = Callable[..., ContractReport]


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checker:
    """Write a source to a file and check the encoder in it."""
    monkeypatch.chdir(tmp_path)

    def check(source: str, arguments: dict[str, object] | None = None) -> ContractReport:
        (tmp_path / "enc.py").write_text(source)
        return check_contract(parse_encoder_spec("enc.py", json.dumps(arguments or {})), CPU)

    return check


def constructor(line: str) -> str:
    """The good encoder with another line for the one that sets `output_dim`."""
    return GOOD.replace("self.output_dim = 4", line)


def before(line: str) -> str:
    """The good encoder with a line that runs before its own."""
    return GOOD.replace("        frames =", f"        {line}\n        frames =")


def result(line: str) -> str:
    """The good encoder with another result."""
    return GOOD.replace("return self.scale * frames, keep", line)


BROKEN = {
    # name: (source, arguments, clause that fails, what the message names)
    "missing import": ("import no_such_library\n" + GOOD, {}, "loads", "No module named 'no_such_library' at enc.py:1"),
    "missing name": ("from json import nothing\n" + GOOD, {}, "loads", "cannot import name 'nothing'"),
    "relative import": ("if True:\n    from .helper import x\n" + GOOD, {}, "loads", "relative import"),
    "fails at import": ("1 / 0\n" + GOOD, {}, "loads", "ZeroDivisionError: division by zero at enc.py:1"),
    "exits at import": ("raise SystemExit(3)\n" + GOOD, {}, "loads", "SystemExit: 3 at enc.py:1"),
    "deleted class": (GOOD + "del GoodEncoder\n", {}, "loads", "has no GoodEncoder"),
    "not a Module": (
        "class NoEncoder:\n    output_dim = 4\n",
        {},
        "is-module",
        "derive it from torch.nn.Module",
    ),
    "instance of a class": (
        GOOD + "GoodEncoder = GoodEncoder()\n",
        {},
        "is-module",
        "an object of type GoodEncoder",
    ),
    "unknown argument": (GOOD, {"layer": 6}, "arguments", "GoodEncoder(layer=6): got an unexpected keyword argument"),
    "missing argument": (GOOD.replace("=1.0", ""), {}, "arguments", "missing a required argument: 'scale'"),
    "constructor raises": (
        constructor("raise OSError('no weights')"),
        {},
        "arguments",
        "OSError: no weights at enc.py:7",
    ),
    "no super().__init__()": (
        GOOD.replace("super().__init__()", "self.layer = nn.Linear(1, 1)"),
        {},
        "arguments",
        "before Module.__init__() call at enc.py:6",
    ),
    "no output_dim": (constructor("pass"), {}, "output-dim", "has no output_dim; set self.output_dim"),
    "output_dim a str": (constructor("self.output_dim = '4'"), {}, "output-dim", "output_dim='4' (str)"),
    "output_dim 0": (constructor("self.output_dim = 0"), {}, "output-dim", "output_dim=0 (int)"),
    "output_dim a bool": (constructor("self.output_dim = True"), {}, "output-dim", "output_dim=True (bool)"),
    "output_dim a float": (constructor("self.output_dim = 4.0"), {}, "output-dim", "output_dim=4.0 (float)"),
    "forward raises": (before("raise ValueError('bad\\nluck')"), {}, "no-mask", "ValueError: bad luck at enc.py:11"),
    "forward takes one argument": (
        GOOD.replace("(self, audio, mask=None)", "(self, audio)").replace("keep = None if mask is None else", "#"),
        {},
        "no-mask",
        "takes 2 positional arguments but 3 were given",
    ),
    "mask cannot be None": (
        GOOD.replace("None if mask is None else ", ""),
        {},
        "no-mask",
        "mask None) raised AttributeError",
    ),
    "no forward": (GOOD.replace("def forward", "def encode"), {}, "no-mask", "NotImplementedError"),
    "bare tensor": (result("return frames"), {}, "two-results", "a bare tensor; return the two"),
    "three results": (result("return [frames, keep, None]"), {}, "two-results", "a list of 3; return the two"),
    "a dict": (result("return dict(features=frames)"), {}, "two-results", "a dict; return the two"),
    "integers": (result("return frames.long(), keep"), {}, "features-float", "torch.int64"),
    "numpy": (result("return frames.numpy(), keep"), {}, "features-float", "type ndarray"),
    "rank 2": (result("return frames.mean(1), keep"), {}, "features-shape", "[1, 4]; expected [1, T, 4]"),
    "rank 4": (result("return frames[None], keep"), {}, "features-shape", "[1, 1, 40, 4]; expected [1, T, 4]"),
    "wrong dim": (constructor("self.output_dim = 5"), {}, "features-shape", "[1, 40, 4]; expected [1, T, 5]"),
    "transposed": (result("return frames.mT, keep"), {}, "features-shape", "[1, 4, 40]; expected [1, T, 4]"),
    "no frames": (result("return frames[:, :0], keep"), {}, "features-shape", "[1, 0, 4]; expected"),
    "NaN": (result("return frames.log(), keep"), {}, "features-finite", "NaN or infinite"),
    "infinity": (result("return frames / 0.0, keep"), {}, "features-finite", "160 of 160"),
    "another device": (result("return frames.to('meta'), keep"), {}, "device", "meta, the audio on cpu; make"),
    "mask on another device": (
        result("return frames, torch.ones(len(audio), frames.shape[1], device='meta')"),
        {},
        "device",
        "the mask is on meta",
    ),
    "cannot be moved": (
        GOOD + "\n    def to(self, device): raise TypeError('no')\n",
        {},
        "device",
        "moving GoodEncoder",
    ),
    "raises with a mask": (
        before("assert mask is None, 'no masks'"),
        {},
        "with-mask",
        "AssertionError: no masks at enc",
    ),
    "NaN with a mask": (
        result("return frames if mask is None else frames * torch.nan, keep"),
        {},
        "with-mask",
        "a padded batch of 3 with a mask: 480 of 480",
    ),
    "mask of the samples": (
        result("return frames, torch.ones_like(audio)"),
        {},
        "mask-shape",
        "[1, 16000] for 40 frames; return None or [1, 40]",
    ),
    "mask one too long": (
        result("return frames, None if mask is None else mask.unfold(1, 390, 390)[..., -1]"),
        {},
        "mask-shape",
        "a padded batch of 3 with a mask: the mask has the shape [3, 41] for 40 frames",
    ),
    "mask for the first clip": (
        result("return frames, None if keep is None else keep[:1]"),
        {},
        "mask-shape",
        "[1, 40] for 40 frames; return None or [3, 40]",
    ),
    "mask of 2": (
        result("return frames, None if keep is None else 2 * keep"),
        {},
        "mask-shape",
        "the mask contains 2;",
    ),
    "mask of minus infinity": (
        result("return frames, None if keep is None else keep.float().log()"),
        {},
        "mask-shape",
        "the mask contains -inf;",
    ),
    "empty mask": (
        result("return frames, None if keep is None else keep * (keep.sum(1) > 4)[:, None]"),
        {},
        "mask-shape",
        "keeps no frame of clip 2",
    ),
    "mask is a list": (result("return frames, [True]"), {}, "mask-shape", "the mask is a list"),
    "too long for a short clip": (
        before("audio.unfold(1, 2000, 1)"),
        {},
        "lengths",
        "a 0.1 s clip: GoodEncoder.forward",
    ),
    "no frames of a short clip": (
        GOOD.replace("400", "4000"),
        {},
        "lengths",
        "raised RuntimeError",
    ),
    "one length only": (
        before("assert audio.shape[1] <= 16000, 'one second at most'"),
        {},
        "lengths",
        "a 30 s clip: GoodEncoder.forward(audio [1, 480000], mask None) raised AssertionError: one second at most",
    ),
    "one clip only": (
        before("audio = audio.reshape(1, -1)"),
        {},
        "batches",
        "a batch of 3: the features have the shape [1, 120, 4]; expected [3, T, 4]",
    ),
    "raises for a batch": (before("audio.mean(1).item()"), {}, "batches", "a batch of 3: GoodEncoder.forward"),
    "writes into its input": (before("audio -= audio.mean()"), {}, "input-unchanged", "work on audio.clone()"),
    "writes into its mask": (
        before("_ = None if mask is None else mask.fill_(1)"),
        {},
        "input-unchanged",
        "writes into its mask",
    ),
    "trains itself": (before("self.train()"), {}, "frozen", "GoodEncoder is in training mode after a call"),
    "weights move": (
        constructor("self.output_dim = 4; self.gain = nn.Parameter(torch.ones(1))").replace(
            "        frames =", "        self.gain.data += 1\n        frames ="
        ),
        {},
        "frozen",
        "changes the parameter gain",
    ),
    "lazy weights": (
        constructor("self.output_dim = 4; self.layer = nn.LazyLinear(4)"),
        {},
        "frozen",
        "layer.weight of GoodEncoder has no values after construction",
    ),
    "normalises over the batch": (
        before("audio = (audio - audio.mean(0)) if len(audio) > 1 else audio"),
        {},
        "others",
        "compute nothing over the batch dimension",
    ),
    "scaled by the loudest": (before("audio = audio / audio.abs().max()"), {}, "others", "in a batch of 3"),
    "relative to the first clip": (before("audio = audio - audio[:1]"), {}, "others", "in a batch of 3"),
    "batch statistics": (
        before("audio = nn.functional.batch_norm(audio[:, None], None, None, training=True)[:, 0]"),
        {},
        "others",
        "of their RMS",
    ),
    "relative to its neighbours, in long clips": (
        before("audio = audio if audio.shape[1] < 160000 else audio - audio[:1]"),
        {},
        "others",
        "a 30 s clip in a batch of 2 has features that differ by",
    ),
    "frames depend on the batch": (
        result("return (frames if len(frames) == 1 else frames[:, 1:]), None"),
        {},
        "others",
        "39 frames instead of 40",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_encoder_is_named_in_one_line(check: Checker, name: str) -> None:
    source, arguments, clause, words = BROKEN[name]
    report = check(source, arguments)
    assert list(report.outcomes) == list(CLAUSES)
    assert report.failure is not None
    found, message = report.failure
    assert (found, words in message) == (clause, True), message
    assert "\n" not in message
    # It also says what to do.
    assert any(word in message for word in (";", "expected", "return")), message
    assert len(message) < 450


GOOD_ONES = {
    # name: (source, honours the mask)
    "without weights": (GOOD, True),
    "ignores the mask": (result("return frames, None"), False),
    "hands the mask back": (result("return frames, mask"), False),
    "all frames valid": (result("return frames, torch.ones(frames.shape[:2])"), False),
    "hears the padding": (before("audio = audio - audio.mean(1, keepdim=True)"), False),
    "one frame too many": (result("return frames, None if keep is None else mask.unfold(1, 400, 400)[..., 0]"), False),
    "arguments by keyword": (GOOD.replace("mask=None", "mask: torch.Tensor | None"), True),
    "half precision": (result("return frames.half(), keep"), True),
    "list as result": (result("return [frames, keep]"), True),
    "a cache that grows": (
        constructor("self.output_dim = 4; self.register_buffer('cache', torch.zeros(0))").replace(
            "        frames =",
            "        self.cache = torch.zeros(max(len(self.cache), audio.shape[1]))\n        frames =",
        ),
        True,
    ),
    "batch-norm": (
        IMPORTS
        + """class NormEncoder(nn.Module):
    output_dim = 8

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv1d(1, 8, 400, 160), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, audio, mask=None):
        return self.layers(audio[:, None]).mT, None
""",
        False,
    ),
    "recurrent": (
        IMPORTS
        + """class RecurrentEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.gru = nn.GRU(160, 16, batch_first=True)

    @property
    def output_dim(self):
        return self.gru.hidden_size

    def forward(self, audio, mask=None):
        return self.gru(audio.unfold(1, 160, 160))[0], None if mask is None else mask.unfold(1, 160, 160)[..., -1]
""",
        True,
    ),
    "attention": (
        IMPORTS
        + """class AttentionEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.output_dim = 32
        self.layer = nn.TransformerEncoderLayer(32, 2, 32, batch_first=True)

    def forward(self, audio, mask=None):
        keep = None if mask is None else mask.unfold(1, 1600, 1600)[..., -1].bool()
        frames = audio.unfold(1, 1600, 1600)[..., :32]
        return self.layer(frames, src_key_padding_mask=None if keep is None else ~keep), keep
""",
        True,
    ),
}


@pytest.mark.parametrize("name", GOOD_ONES)
def test_a_good_encoder_keeps_every_clause(check: Checker, name: str) -> None:
    source, honours_mask = GOOD_ONES[name]
    report = check(source)
    assert {clause: o.message for clause, o in report.outcomes.items() if o.status != "passed"} == {}
    assert report.failure is None
    assert report.warnings == ()
    assert report.honours_mask == honours_mask
    padding, long = (report.outcomes[clause].message for clause in ("padding", "padding-long"))
    assert padding.startswith("honoured" if honours_mask else "not honoured: ")
    assert long.startswith("honoured" if honours_mask else "not needed: ")


WARNED = {
    # name: (source, clause, what the message names)
    "hears 25 ms": (
        result("return audio[:, :400].reshape(-1, 100, 4), None"),
        "hears-all",
        "nothing after 1 s of a 61 s clip changes its features (100 frames); training clips are cropped to 30 s, but",
    ),
    "hears 30 s": (
        before("audio = audio[:, :480000]; mask = None if mask is None else mask[:, :480000]"),
        "hears-all",
        "nothing after 30 s of a 61 s clip changes its features (1200 frames)",
    ),
    "normalises what it does not hear": (
        before("audio = ((audio - audio.mean(1, keepdim=True)) / audio.std(1, keepdim=True))[:, :480000]"),
        "hears-all",
        "nothing after 30 s of a 61 s clip",
    ),
    "leaves gaps": (
        before("audio = torch.cat([audio[:, :400000], audio[:, 560000:]], 1)"),
        "hears-all",
        "the middle of a 61 s clip does not change its features",
    ),
    "hears nothing": (
        result("return torch.ones_like(frames), keep"),
        "hears-all",
        "nothing after 0 s of a 61 s clip changes its features",
    ),
    "takes 30 s": (
        before("assert audio.shape[1] <= 480000, '30 s at most'"),
        "hears-all",
        "a 61 s clip: GoodEncoder.forward(audio [1, 976333], mask None) raised AssertionError: 30 s at most at enc.py:",
    ),
    "a summary": (
        result("return frames.mean(1, keepdim=True), None"),
        "frame-rate",
        "a 30 s clip has 1 frames, 0.0333 per second; they hardly tell when",
    ),
    "as many frames as samples": (
        GOOD.replace("400, 400", "4, 4"),
        "frame-rate",
        "a 1 s clip has 4000 frames, 4e+03 per second; each is a position of the decoder",
    ),
    "a frame for every moment of 30 s": (
        result("return nn.functional.pad(frames, (0, 0, 0, max(0, 1200 - frames.shape[1]))), None"),
        "frame-rate",
        "a 1 s clip has 1200 frames, 1.2e+03 per second",
    ),
    "very large": (result("return 1e4 * frames, keep"), "scale", "an RMS of 2.66e+03; the projector expects about 1"),
    "very small": (result("return 1e-3 * frames, keep"), "scale", "an RMS of 0.000266; the projector"),
    "all zero": (result("return 0.0 * frames, keep"), "scale", "an RMS of 0; the projector"),
}


@pytest.mark.parametrize("name", WARNED)
def test_an_encoder_that_can_be_used_but_hardly_as_meant_is_warned_of(check: Checker, name: str) -> None:
    source, clause, words = WARNED[name]
    report = check(source)
    assert report.failure is None
    message = dict(report.warnings)[clause]
    assert words in message, message
    assert "\n" not in message


LONG_PADDING = {
    # name: (source, what the finding names)
    "hop of the longest clip": (
        GOOD.replace("400, 400", "hop, hop").replace(
            "        frames =",
            "        hop = 400 if audio.shape[1] <= 160000 else audio.shape[1] // 400\n        frames =",
        ),
        "a 30 s clip padded to 61 s has 196 frames instead of 400",
    ),
    "no mask for long clips": (
        result("return frames, keep if audio.shape[1] < 480000 else None"),
        "it returns no mask for a batch with a 61 s clip",
    ),
    "mask of another length": (
        result("return frames, keep if mask is None or audio.shape[1] < 480000 else keep[:, 1:]"),
        "a batch with a 61 s clip: the mask has the shape [3, 2439] for 2440 frames",
    ),
    "raises": (
        before("assert mask is None or audio.shape[1] < 480000, 'too large'"),
        "a batch with a 61 s clip: GoodEncoder.forward(audio [3, 976333], a mask [3, 976333]) raised AssertionError",
    ),
}


@pytest.mark.parametrize("name", LONG_PADDING)
def test_an_encoder_that_honours_padding_up_to_a_length_gets_none(check: Checker, name: str) -> None:
    source, words = LONG_PADDING[name]
    report = check(source)
    assert report.failure is None
    assert report.outcomes["padding"].message.startswith("honoured")
    message = report.outcomes["padding-long"].message
    assert message.startswith(f"not honoured: {words}"), message
    assert message.endswith("; clips of different lengths are encoded apart")
    assert not report.honours_mask


def test_speed_is_reported(check: Checker) -> None:
    report = check(GOOD)
    assert report.frames_per_second == 40
    assert report.realtime_factor is not None
    assert report.realtime_factor > 0
    assert report.outcomes["lengths"].message == f"40 frames per second, real-time factor {report.realtime_factor:.2g}"


def test_the_dummy_is_warned_of_and_used() -> None:
    report = check_contract(parse_encoder_spec(str(EXAMPLES / "dummy_encoder.py")), CPU)
    assert report.failure is None
    assert [clause for clause, _ in report.warnings] == ["frame-rate", "repeatable"]
    assert [c for c, o in report.outcomes.items() if o.status == "not tested"] == [
        "hears-all",
        "others",
        "padding",
        "padding-long",
    ]
    assert "it returns the audio mask" in report.outcomes["with-mask"].message
    assert not report.honours_mask


@pytest.mark.parametrize(
    "line",
    [
        "audio = nn.functional.dropout(audio, 0.1)",
        "audio = audio + 0.01 * torch.randn_like(audio)",
        "self.scale += 1",
    ],
)
def test_an_unrepeatable_encoder_is_warned_of(check: Checker, line: str) -> None:
    report = check(before(line))
    assert report.failure is None
    assert [clause for clause, _ in report.warnings] == ["repeatable"]
    assert report.outcomes["others"].status == report.outcomes["padding"].status == "not tested"
    assert not report.honours_mask


def test_what_a_failure_leaves_untested_says_so(check: Checker) -> None:
    report = check(result("return frames.long(), keep"))
    statuses = [outcome.status for outcome in report.outcomes.values()]
    assert statuses == ["passed"] * 6 + ["failed"] + ["not tested"] * (len(CLAUSES) - 7)
    assert report.outcomes["padding"].message == "features-float does not hold"
    assert report.frames_per_second is None
    assert report.encoder is not None


def test_independent_clauses_fail_independently(check: Checker) -> None:
    report = check(before("assert len(audio) == 1 and audio.shape[1] > 2000"))
    failed = [clause for clause, outcome in report.outcomes.items() if outcome.status == "failed"]
    assert failed == ["lengths", "batches"]
    assert report.outcomes["repeatable"].status == "passed"
    assert report.outcomes["with-mask"].status == "not tested"
    assert report.failure is not None
    assert report.failure[0] == "lengths"


@pytest.mark.parametrize("source", [GOOD, before("audio = nn.functional.dropout(audio, 0.1)")])
def test_the_sessions_random_state_is_left_alone(check: Checker, source: str) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    check(source)
    assert torch.equal(torch.rand(3), expected)


def test_an_interruption_passes_through(check: Checker) -> None:
    with pytest.raises(KeyboardInterrupt):
        check(before("raise KeyboardInterrupt"))


def test_a_report_of_an_encoder_that_repeats_itself_is_kept_with_its_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("enc.py").write_text(WARNED["hears 30 s"][0])
    first, again = (check_contract(parse_encoder_spec("enc.py"), CPU, Store(root=tmp_path / "store")) for _ in range(2))
    assert (first.reused, again.reused) == (False, True)
    assert again.warnings == first.warnings != ()


def test_a_report_with_nothing_amiss_is_kept_under_all_that_it_depends_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(root=tmp_path / "store")

    def check(source: str) -> ContractReport:
        Path("enc.py").write_text(source)
        return check_contract(parse_encoder_spec("enc.py"), CPU, store)

    first, again = check(GOOD), check(GOOD)
    assert (first.reused, again.reused) == (False, True)
    assert again == dataclasses.replace(first, encoder=again.encoder, reused=True)
    assert again.encoder is not None
    assert first.encoder is not None
    assert again.encoder.fingerprint == first.encoder.fingerprint
    assert not check(GOOD.replace("scale=1.0", "scale=2.0")).reused
    with monkeypatch.context() as other:
        other.setattr("xares_bench.encoders.contract.library_versions", lambda names: dict.fromkeys(names, "another"))
        assert not check(GOOD).reused
    with monkeypatch.context() as other:
        other.setattr("xares_bench.encoders.contract.code_digest", lambda *modules: "another")
        assert not check(GOOD).reused


@pytest.mark.parametrize(
    ("source", "status"),
    [
        (result("return frames[0], keep"), "failed"),
        (result("return frames + torch.rand(()), keep"), "warning"),
        ("import no_such_library\n" + GOOD, "failed"),
    ],
)
def test_a_report_of_what_may_differ_the_next_time_is_never_kept(
    source: str, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("enc.py").write_text(source)
    for _ in range(2):
        report = check_contract(parse_encoder_spec("enc.py::GoodEncoder"), CPU, Store(root=tmp_path / "store"))
        assert not report.reused
        assert status in {outcome.status for outcome in report.outcomes.values()}
    assert not (tmp_path / "store" / "contracts").exists()
