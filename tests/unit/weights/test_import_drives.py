"""Does a model packed onto drives hold its source's weights, whatever interrupts it and whatever else is on them?"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack, suppress
from hashlib import blake2b
from pathlib import Path

import pytest

from nvstreamd.errors import BadModelFile, NotFound, StorageFull
from nvstreamd.weights.packed.attempts import JOURNAL_NAME
from nvstreamd.weights.packed.importer import Progress
from nvstreamd.weights.packed.layout import STRIPE, lay_out
from nvstreamd.weights.packed.manifest import ALIGNMENT, DriveHome
from nvstreamd.weights.packed.superblock import DATA_BEGIN, Entry
from nvstreamd.weights.packed.targets import read_rate
from support.shapes import tiny
from unit.weights.disks import MIB, PAIR, Disks
from unit.weights.models import look, make, model_at, refusal
from unit.weights.power import PowerCut, cut_at
from unit.weights.stores import load_all, pack

SEGMENTS = 1 + 3 + 1


def entries(disks: Disks, serial: str) -> list[Entry]:
    with disks.volume(serial) as volume:
        assert volume is not None
        return list(volume.models)


def homes_of(store: Path, disks: Disks) -> list[DriveHome]:
    with model_at(store, disks) as model:
        return [home for home in model.manifest.homes if home is not None]


@pytest.mark.parametrize("serials", [PAIR[:1], PAIR])
def test_weights_on_drives_are_those_of_the_source(tmp_path: Path, source: Path, disks: Disks,
                                                   serials: list[str]) -> None:
    store = disks.pack(source, tmp_path / "store", serials)
    assert load_all(store, drives=disks) == load_all(source)
    assert load_all(store, look(store, disks).minimum_budget, disks) == load_all(source)
    assert sorted(path.name for path in store.iterdir()) == ["header.gguf", "manifest.json"]


def test_a_manifest_says_where_its_weights_are_and_what_they_were_made_of(tmp_path: Path, source: Path,
                                                                          disks: Disks) -> None:
    store = disks.pack(source, tmp_path / "store", PAIR)
    with model_at(store, disks) as model:
        (made_of,) = model.manifest.sources
        homes, data = model.manifest.homes, model.data
        begins = [min(e.offset for s in model.manifest.segments for e in s.extents if e.file == n) for n in range(2)]
    facts = source.stat()
    assert (made_of.path, made_of.size, made_of.mtime_ns, made_of.inode) == (
        str(source), facts.st_size, facts.st_mtime_ns, facts.st_ino)
    for serial, home, file, begin in zip(PAIR, homes, data, begins, strict=True):
        assert home is not None and (home.serial, home.nsid) == (serial, 1) and file.size == 16 * MIB
        assert DATA_BEGIN <= home.offset <= begin < home.offset + home.size
        disk = (disks.directory / serial).read_bytes()
        for probe in home.probes:
            stretch = disk[probe.offset : probe.offset + probe.length]
            assert probe.digest == blake2b(stretch, digest_size=16).hexdigest()
        assert home.probes[0].offset == home.offset
        assert home.probes[-1].offset + home.probes[-1].length == home.offset + home.size


def test_a_part_of_several_mib_is_probed_at_both_ends(tmp_path: Path, disks: Disks) -> None:
    source = make(tmp_path / "source.gguf", tiny(width=512, layers=1))
    store = disks.pack(source, tmp_path / "store", ["FAST"])
    (home,) = homes_of(store, disks)
    assert home.size > 2 * MIB and [probe.length for probe in home.probes] == [MIB, MIB]
    assert [probe.offset - home.offset for probe in home.probes] == [0, home.size - MIB]


def test_a_drive_describes_itself(tmp_path: Path, source: Path, disks: Disks) -> None:
    """Whoever lost the store can still tell what is on the drive."""
    store = disks.pack(source, tmp_path / "store", PAIR)
    for serial in PAIR:
        (entry,) = entries(disks, serial)
        disk = (disks.directory / serial).read_bytes()
        assert (entry.name, entry.unfinished) == ("m", False)
        manifest, header = (disk[s.offset : s.end] for s in (entry.manifest, entry.header))
        assert json.loads(manifest) == json.loads((store / "manifest.json").read_text())
        assert header.rstrip(b"\0") == (store / "header.gguf").read_bytes().rstrip(b"\0")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of many stripes."""
    return make(tmp_path_factory.mktemp("wide") / "source.gguf", tiny(width=1024, layers=4))


@pytest.mark.parametrize("rates", [[1, 1], [3, 1], [7000, 3500, 1000], [1, 1 << 30]])
def test_every_drive_gets_what_it_can_read_in_the_same_time(wide: Path, rates: list[int]) -> None:
    with model_at(wide) as model:
        layout = lay_out(model.manifest, rates)
        assert layout == lay_out(model.manifest, rates)
    load = [0] * len(rates)
    for segment in layout.segments:
        assert sum(extent.length for extent in segment.extents) == segment.nbytes
        for extent in segment.extents:
            assert not extent.offset % ALIGNMENT
            load[extent.file] += extent.length
        # So far, whichever pass is cut off anywhere: no drive is more than a stripe behind the others.
        shares = [sum(load) * rate / sum(rates) for rate in rates]
        assert all(abs(got - wanted) <= len(rates) * STRIPE for got, wanted in zip(load, shares, strict=True))


def test_drives_of_different_speed_get_different_shares(tmp_path: Path, disks: Disks) -> None:
    source = make(tmp_path / "source.gguf", tiny(width=512, layers=6))
    for serial in PAIR:
        disks.add(serial, 64 * MIB)
    store = disks.pack(source, tmp_path / "store", PAIR, rates=[3000, 1000])
    fast, slow = homes_of(store, disks)
    assert 2.2 < fast.size / slow.size < 4
    assert load_all(store, drives=disks) == load_all(source)


def test_a_drive_is_measured_by_reading_it(disks: Disks) -> None:
    with ExitStack() as stack:
        before = (disks.directory / "FAST").read_bytes()
        assert read_rate(disks.open_block("FAST", 1, write=True, stack=stack)) >= 1
    assert (disks.directory / "FAST").read_bytes() == before


def interrupt_after(after: int, seen: list[Progress]) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) == after:
            raise PowerCut
    return report


@pytest.mark.parametrize("after", range(1, SEGMENTS + 1))
def test_an_interrupted_import_goes_on_in_the_same_place_with_the_same_shares(tmp_path: Path, source: Path,
                                                                              disks: Disks, after: int) -> None:
    seen: list[Progress] = []
    with pytest.raises(PowerCut):
        disks.pack(source, tmp_path / "store", PAIR, interrupt_after(after, seen), rates=[3, 1])
    before = [entries(disks, serial) for serial in PAIR]
    assert all(entry.unfinished for (entry,) in before)
    refusal(tmp_path / "store/m.nvs", BadModelFile, "run it again")
    again: list[Progress] = []
    # Measured again, the drives would get other shares and nothing would be where it was.
    store = disks.pack(source, tmp_path / "store", PAIR, again.append, rates=[1, 3])
    assert again[-1].resumed == seen[-1].done
    for (unfinished,), serial in zip(before, PAIR, strict=True):
        assert entries(disks, serial) == [unfinished.model_copy(update={"unfinished": False})]
    assert load_all(store, drives=disks) == load_all(source)


@pytest.mark.thorough
@pytest.mark.parametrize("there", ["nothing", "an older model"])
def test_a_power_cut_at_any_step_leaves_the_older_model_or_the_newer_or_says_so(tmp_path: Path, source: Path,
                                                                                disks: Disks, there: str) -> None:
    """What was imported once can be loaded until the newer one can; the same import then brings it about."""
    older = make(tmp_path / "older.gguf", tiny(layers=1), seed=3)
    whole = {"older": load_all(older), "newer": load_all(source)}
    found: list[str] = []
    resumed = 0
    for step in range(1000):
        home = tmp_path / f"store{step}"
        for serial in PAIR:
            disks.add(serial)
        if there != "nothing":
            disks.pack(older, home, PAIR, rates=[1, 1])
        is_cut = pack_with_a_cut(disks, source, home, step)
        found.append(state(home / "m.nvs", disks, whole))
        seen: list[Progress] = []
        store = disks.pack(source, home, PAIR, seen.append, rates=[2, 1])
        resumed += bool(seen[-1].resumed)
        assert load_all(store, drives=disks) == whole["newer"]
        assert [len(entries(disks, serial)) for serial in PAIR] == [1, 1] and not entries(disks, "FAST")[0].unfinished
        assert sorted(path.name for path in store.iterdir()) == ["header.gguf", "manifest.json"]
        if not is_cut:
            break
    assert resumed > 20 and step > 40, "the loop has cut it everywhere"
    order = ["older" if there != "nothing" else "none", "none", "newer"]
    assert [order.index(each) for each in found] == sorted(order.index(each) for each in found)
    assert there == "nothing" or found.count("none") < 8, "there is no model only while two files are exchanged"


def test_a_model_that_drives_did_not_hear_of_stays_while_the_next_is_imported(tmp_path: Path, source: Path,
                                                                              disks: Disks) -> None:
    """The power failed behind the manifest and before the drives' directories said that the model is whole."""
    third = make(tmp_path / "third.gguf", tiny(layers=2), seed=9)
    for step in range(1000):
        home = tmp_path / f"store{step}"
        for serial in PAIR:
            disks.add(serial)
        assert pack_with_a_cut(disks, source, home, step)
        if (home / "m.nvs/manifest.json").exists():
            break
    assert entries(disks, "FAST")[0].unfinished
    with suppress(PowerCut):
        disks.pack(third, home, PAIR, interrupt_after(2, []))
    assert load_all(home / "m.nvs", drives=disks) == load_all(source)


def pack_with_a_cut(disks: Disks, source: Path, home: Path, step: int) -> bool:
    """Whether the import got as far as the step at which the power fails."""
    with pytest.MonkeyPatch.context() as patch:
        cut_at(patch, step)
        try:
            disks.pack(source, home, PAIR, rates=[2, 1])
        except PowerCut:
            return True
    return False


def state(store: Path, disks: Disks, whole: dict[str, dict[str, bytes]]) -> str:
    """Which model a user finds."""
    try:
        found = load_all(store, drives=disks)
    except (BadModelFile, NotFound) as error:
        assert "run it again" in error.hint or not store.exists() or isinstance(error, NotFound)
        return "none"
    return next(name for name, content in whole.items() if content == found)


def test_models_of_other_names_stay(tmp_path: Path, source: Path, disks: Disks) -> None:
    other = make(tmp_path / "other.gguf", tiny(layers=1), seed=5)
    kept = disks.pack(other, tmp_path / "store", PAIR, name="other")
    for _ in range(3):
        store = disks.pack(source, tmp_path / "store", PAIR)
    assert load_all(kept, drives=disks) == load_all(other) and load_all(store, drives=disks) == load_all(source)
    assert sorted(entry.name for entry in entries(disks, "FAST")) == ["m", "other"]


def test_imports_from_one_drive_to_two_and_into_directories_replace_each_other(tmp_path: Path, source: Path,
                                                                               disks: Disks) -> None:
    home = tmp_path / "store"
    assert load_all(pack(source, [home])) == load_all(source)
    assert load_all(disks.pack(source, home, PAIR[:1]), drives=disks) == load_all(source)
    assert not (home / "m.nvs/part-0.bin").exists(), "nobody would ever remove it"
    assert load_all(disks.pack(source, home, PAIR), drives=disks) == load_all(source)
    assert load_all(pack(source, [home])) == load_all(source)


def test_a_drive_without_room_for_both_keeps_the_older_model(tmp_path: Path, disks: Disks) -> None:
    disks.add("SMALL", 7 * MIB)
    older = make(tmp_path / "older.gguf", tiny(width=256, layers=2))
    store = disks.pack(older, tmp_path / "store", ["SMALL"])
    before = (disks.directory / "SMALL").read_bytes()
    with pytest.raises(StorageFull) as full:
        disks.pack(older, tmp_path / "store", ["FAST", "SMALL", "SLOW"], rates=[1, 100, 1])
    assert "SMALL" in full.value.message and "on it: m" in full.value.message and "are free" in full.value.message
    assert (disks.directory / "SMALL").read_bytes() == before
    assert entries(disks, "FAST") == [], "a drive that has room is not left with half a model"
    assert load_all(store, drives=disks) == load_all(older)


@pytest.mark.parametrize("weights", [[], [1], [1, 0], [1, -1], [1, 1.5], [1, True], [1, "1"], [1, 1 << 70], None])
def test_a_journal_with_impossible_shares_starts_over(tmp_path: Path, source: Path, disks: Disks,
                                                      weights: object) -> None:
    with suppress(PowerCut):
        disks.pack(source, tmp_path / "store", PAIR, interrupt_after(3, []))
    journal = tmp_path / "store/m.nvs" / JOURNAL_NAME
    first, *lines = journal.read_text().splitlines()
    journal.write_text("\n".join([json.dumps({**json.loads(first), "weights": weights}), *lines, ""]))
    seen: list[Progress] = []
    store = disks.pack(source, tmp_path / "store", PAIR, seen.append)
    assert not seen[-1].resumed and load_all(store, drives=disks) == load_all(source)
    assert [len(entries(disks, serial)) for serial in PAIR] == [1, 1], "the attempt of that journal is gone"
