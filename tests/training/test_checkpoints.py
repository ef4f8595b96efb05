from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch

from xares_bench.core.digests import file_digest
from xares_bench.core.errors import CacheWarning
from xares_bench.core.store import Store
from xares_bench.training.checkpoints import KIND, Checkpoint, Checkpoints


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(root=tmp_path / "store")


def checkpoints(store: Store, key: str = "key", seed: int = 1) -> Checkpoints:
    """As a new session has them, which has verified nothing yet."""
    return Checkpoints(Store(root=store.root), key, {"mix": "task1", "seed": seed})


def after(num_steps: int) -> Checkpoint:
    return Checkpoint(
        num_steps=num_steps,
        tensors={"weight": torch.full((3,), float(num_steps)), "random": torch.arange(5, dtype=torch.uint8)},
        values={"losses": [0.1] * num_steps},
    )


def files(store: Store) -> list[Path]:
    return sorted(path for path in (store.root / KIND / "key").glob("*/*") if path.is_file())


def test_what_was_saved_is_read_back_to_the_bit(store: Store) -> None:
    assert checkpoints(store).newest() is None
    checkpoints(store).save(after(7))
    found = checkpoints(store).newest()
    assert found is not None
    assert found.num_steps == checkpoints(store).num_steps == 7
    assert found.values == after(7).values
    assert found.tensors.keys() == {"weight", "random"}
    assert all(torch.equal(found.tensors[name], value) for name, value in after(7).tensors.items())


def test_the_last_two_are_kept_until_all_are_removed(store: Store) -> None:
    kept = checkpoints(store)
    for num_steps in (8, 9, 10, 11):  # also across the digits of a number
        kept.save(after(num_steps))
    assert {path.parent.name for path in files(store)} == {"step-000000010", "step-000000011"}
    kept.remove()
    assert checkpoints(store).newest() is None
    assert not (store.root / KIND / "key").exists()


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "gone"])
def test_where_the_newest_is_damaged_the_one_before_is_used(store: Store, name: str, damage: str) -> None:
    for num_steps in (8, 9):
        checkpoints(store).save(after(num_steps))
    file = store.root / KIND / "key" / "step-000000009" / name
    data = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        place = data.index(b"}") if name == "manifest.json" else len(data) // 2
        data[place] ^= 0x41
        file.write_bytes(data)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = checkpoints(store).newest()
    assert found is not None
    assert found.num_steps == 8
    if damage == "flipped" and name != "manifest.json":
        assert [warning.category for warning in caught] == [CacheWarning], "of the right size, and wrong"


def test_one_that_was_cut_off_while_it_was_written_is_none(store: Store) -> None:
    checkpoints(store).save(after(8))
    unfinished = store.begin(f"{KIND}/key", "step-000000009", wait=True)
    assert unfinished is not None
    (unfinished.folder / "state.json").write_text("{")
    found = checkpoints(store).newest()
    assert found is not None
    assert found.num_steps == 8


def test_a_full_disk_is_said_once_and_the_one_before_stays(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = checkpoints(store)
    kept.save(after(8))

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xares_bench.training.checkpoints.save_file", full)
    with pytest.warns(CacheWarning, match="No space left on device; the training continues"):
        kept.save(after(9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept.save(after(10))
    assert {path.parent.name for path in files(store)} == {"step-000000008"}


def test_an_unfinished_training_of_the_same_mix_that_does_not_fit_is_known(store: Store) -> None:
    checkpoints(store, "other").save(after(40))
    checkpoints(store, "of another seed", seed=2).save(after(90))
    assert checkpoints(store).of_others() == 40
    assert checkpoints(store).newest() is None
    assert checkpoints(store, "other").of_others() == 0


def test_nothing_in_a_checkpoint_is_executed(store: Store) -> None:
    """A pickle in the place of the tensors, with a manifest that fits it, is refused by the reader."""
    kept = checkpoints(store)
    kept.save(after(8))
    folder = store.root / KIND / "key" / "step-000000008"
    torch.save({"weight": torch.zeros(3)}, folder / "state.safetensors")
    manifest = json.loads((folder / "manifest.json").read_text())
    described = manifest["files"]["state.safetensors"]
    described["size_bytes"] = (folder / "state.safetensors").stat().st_size
    described["sha256"] = file_digest(folder / "state.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(CacheWarning, match="step-000000008"):
        assert checkpoints(store).newest() is None
