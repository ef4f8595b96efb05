"""The user's encoder: imported, constructed, frozen, and called.

Shapes: B clips, S samples (16 kHz), T frames, D = output_dim.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from xares_bench.config.encoder_spec import EncoderSpec
from xares_bench.core.errors import EncoderError
from xares_bench.encoders.fingerprint import is_library_file, structure_digest, weight_digests
from xares_bench.encoders.returned import checked_result, kind_of
from xares_bench.runtime.determinism import let_libraries_read_variables, seeded
from xares_bench.runtime.process_state import OwnSettings
from xares_bench.runtime.signals import deadline

_MODULE_PREFIX = "_xares_bench_encoder_"
_MAX_MESSAGE_CHARACTERS = 300

_local_modules: set[str] = set()
"""Names of the user's modules that the last encoder imported. The next load imports them again, so that edits count."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FrozenEncoder:
    """An encoder in eval mode, without gradients, whose results are checked on every call.

    Attributes:
        module: The user's module.
        spec: Which encoder it is.
        output_dim: Width D of its features.
        device: Its device.
        folder: Where imports of its source are looked up first.
        fingerprint: Digest of its structure, and of its behaviour once it is `identified`, in hexadecimal digits.
        weights: Digest of each parameter and buffer after loading, by name.
        settings: Settings of the process that it has changed for itself.
        num_before: How many encoders of this structure behaved differently, as far as the store knows.
    """

    module: nn.Module
    spec: EncoderSpec
    output_dim: int
    device: torch.device
    folder: Path
    fingerprint: str
    weights: Mapping[str, str]
    settings: OwnSettings
    num_before: int = 0

    @property
    def name(self) -> str:
        """Its name in results: that of its class, or of the model on the hub."""
        return self.spec.name

    def __call__(self, audio_BS: Tensor, mask_BS: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return features `[B, T, D]` in the encoder's own dtype, and their bool mask `[B, T]`, or None for all.

        Args:
            audio_BS: Float32 samples `[B, S]` at 16 kHz.
            mask_BS: `[B, S]`, 1 for audio and 0 for padding, or None.

        Raises:
            EncoderError: The encoder raised, or its result breaks the contract.
        """
        audio_BS, mask_BS = self.placed(audio_BS, mask_BS)
        return checked_result(self.run(audio_BS, mask_BS), audio_BS, mask_BS, self.output_dim)

    def placed(self, audio_BS: Tensor, mask_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the inputs on the encoder's device, the mask as int64."""
        audio_BS = audio_BS.to(self.device)
        return audio_BS, None if mask_BS is None else mask_BS.to(audio_BS.device, torch.long)

    def run(self, audio_BS: Tensor, mask_BS: Tensor | None) -> object:
        """Return what the module returns for inputs on its device, unchecked.

        Raises:
            EncoderError: The module raised, did not return in time, or has changed the process for good.
        """
        mask = "mask None" if mask_BS is None else f"a mask {list(mask_BS.shape)}"
        with (
            self.settings.in_force(),
            _users_code(
                "no-mask" if mask_BS is None else "with-mask",
                f"{self.name}.forward(audio {list(audio_BS.shape)}, {mask})",
                "it must take float32 audio [B, samples] and a mask that is None or [B, samples] of 0 and 1",
            ),
            importable(self.folder),
            torch.inference_mode(),
            torch.autocast(self.device.type, enabled=False),
            deadline(),
        ):
            # A module that contains the encoder may have been put into train mode.
            self.module.eval()
            result: object = self.module(audio_BS, mask_BS)
        refuse_stuck(self.settings)
        return result


def load_encoder(spec: EncoderSpec, device: torch.device) -> FrozenEncoder:
    """Import and construct an encoder, move it to its device and freeze it; of one that is there already, a copy.

    The file's folder (for a dotted path the current one) is importable meanwhile, and while the encoder runs. Untrained
    weights are the same on every load, because the constructor runs with fixed random seeds. The session's random state
    does not change.

    Raises:
        EncoderError: Import or construction failed, or the class is not an encoder; the clause says which.
    """
    folder = spec.file.parent if spec.file is not None else Path.cwd()
    settings = OwnSettings()
    if spec.instance is None:
        _forget_local_modules()
    let_libraries_read_variables(device)
    with settings.being_set(), importable(folder), seeded(0, device):
        if spec.instance is None:
            source_module, encoder_class = _import_class(spec)
            module = _construct(encoder_class, spec)
        else:
            module = _copied(spec.instance, spec.class_name)
            name = type(module).__module__
            source_module = sys.modules.get(name, ModuleType(name))
        output_dim = _output_dim(module, spec.class_name)
        _refuse_unmade_weights(module, spec.class_name)
        with _users_code("device", f"moving {spec.class_name} to {device}", "a module must support .to(device)"):
            module.to(device)
        with _users_code("frozen", f"freezing {spec.class_name}", "eval() and requires_grad_(False) must work"):
            module.eval().requires_grad_(False)
    refuse_stuck(settings)
    weights = weight_digests(module)
    structure = structure_digest(spec, module, source_module, weights, folder)
    return FrozenEncoder(
        module=module,
        spec=spec,
        output_dim=output_dim,
        device=device,
        folder=folder,
        fingerprint=structure,
        weights=weights,
        settings=settings,
    )


def refuse_stuck(settings: OwnSettings) -> None:
    """Refuse an encoder that has changed the process for good.

    Raises:
        EncoderError: It has; the message says what.
    """
    for name, change in settings.stuck.items():
        raise EncoderError("process", f"it changes {name} ({change}), which cannot be undone; remove that")


def _import_class(spec: EncoderSpec) -> tuple[ModuleType, type[nn.Module]]:
    place = spec.file if spec.file is not None else spec.module
    with _users_code("loads", f"importing {place}", "install what is missing or fix the import"):
        if spec.file is not None:
            source_module = _import_file(spec.file)
        else:
            assert spec.module is not None, spec
            source_module = importlib.import_module(spec.module)
    found = getattr(source_module, spec.class_name, None)
    if found is None:
        raise EncoderError("loads", f"{place} has no {spec.class_name}; check the spelling of the class")
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        kind = "a class" if isinstance(found, type) else kind_of(found)
        raise EncoderError(
            "is-module", f"{spec.class_name} is {kind} that is not a torch.nn.Module; derive it from torch.nn.Module"
        )
    return source_module, found


class _UncachedLoader(SourceFileLoader):
    """Compiles a file on every load: cached byte code is matched by whole seconds, and may be outdated."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the file as it is now."""
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


def _import_file(file: Path) -> ModuleType:
    """Import a file anywhere on disk, under a unique name in `sys.modules`."""
    identity = hashlib.sha256(str(file).encode() + file.read_bytes()).hexdigest()
    name = f"{_MODULE_PREFIX}{identity[:16]}"
    module_spec = importlib.util.spec_from_file_location(name, file, loader=_UncachedLoader(name, str(file)))
    assert module_spec is not None, file
    assert module_spec.loader is not None, file
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[name] = module
    try:
        module_spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _construct(encoder_class: type[nn.Module], spec: EncoderSpec) -> nn.Module:
    arguments = {**spec.place, **spec.arguments}
    call = f"{spec.class_name}({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"
    try:
        signature = inspect.signature(encoder_class)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        try:
            signature.bind(**arguments)
        except TypeError as error:
            raise EncoderError(
                "arguments",
                f"{call}: {error}; the constructor takes {signature}, so change --encoder-args or give it defaults",
            ) from None
    with _users_code("arguments", call, "change --encoder-args or fix the constructor"):
        return encoder_class(**arguments)


def _copied(instance: object, name: str) -> nn.Module:
    """Return a copy of the user's own object, which stays as it is: on its device, in its mode, and trainable."""
    if not isinstance(instance, nn.Module):
        raise EncoderError("is-module", f"found {kind_of(instance)}, expected a torch.nn.Module")
    # What a forward has computed with gradients, such as a normalised weight, can be copied without them only.
    computed = [
        value
        for child in instance.modules()
        for value in vars(child).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    memo: dict[int, Any] = {id(tensor): tensor.detach().clone() for tensor in computed}
    with _users_code("loads", f"copying the {name}", "let copy.deepcopy work, or name the class as FILE.py::CLASS"):
        return copy.deepcopy(instance, memo)


def _output_dim(module: nn.Module, name: str) -> int:
    advice = "set self.output_dim to the width of the features, a positive int"
    with _users_code("output-dim", f"reading {name}.output_dim", advice):
        value: object = getattr(module, "output_dim", None)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        found = "has no output_dim" if value is None else f"has output_dim={value!r} ({type(value).__name__})"
        raise EncoderError("output-dim", f"{name} {found}; {advice}")
    return value


def _refuse_unmade_weights(module: nn.Module, name: str) -> None:
    for tensor_name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if torch.nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise EncoderError(
                "frozen", f"{tensor_name} of {name} has no values after construction; give lazy layers their sizes"
            )


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Put a folder first on the import path for the block, and note which of the user's modules were imported."""
    before, place = set(sys.modules), str(folder)
    sys.path.insert(0, place)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(place)
        if len(sys.modules) != len(before):
            _local_modules.update(name for name in set(sys.modules) - before if _is_local(name))


def _forget_local_modules() -> None:
    """Forget the user's modules of the last encoder, which may be edited, or have the names of another's."""
    for name in _local_modules:
        sys.modules.pop(name, None)
    _local_modules.clear()
    importlib.invalidate_caches()


def _is_local(name: str) -> bool:
    file = getattr(sys.modules[name], "__file__", None)
    return file is not None and not name.startswith((_MODULE_PREFIX, "xares_bench")) and not is_library_file(file)


@contextlib.contextmanager
def _users_code(clause: str, action: str, advice: str) -> Iterator[None]:
    """Turn an exception of the user's code into one line: the exception, where it was raised, what to do."""
    try:
        yield
    except EncoderError:
        # From our own wrapper of hub models: it is one line already.
        raise
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # with SystemExit, and outcomes of pytest such as skip
        message = " ".join(str(error).split())
        if len(message) > _MAX_MESSAGE_CHARACTERS:
            message = f"{message[:_MAX_MESSAGE_CHARACTERS]}..."
        raised = f"{type(error).__name__}: {message}" if message else type(error).__name__
        raise EncoderError(clause, f"{action} raised {raised}{_place(error)}; {advice}") from error


def _place(error: BaseException) -> str:
    """Return ` at FILE:LINE` of the innermost frame in the user's code, or nothing."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename is not None:
        frames.append((error.filename, error.lineno))
    for filename, line in reversed(frames):
        path = Path(filename)
        is_own = path.is_relative_to(Path(__file__).parents[1])
        if filename.startswith("<") or is_own or is_library_file(filename):
            continue
        shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
        return f" at {shown}:{line}"
    return ""
