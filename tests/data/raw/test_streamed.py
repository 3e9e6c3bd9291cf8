"""Shards that are decoded whenever they are read, against the store that is made of them."""

import json
import pickle
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import forked
from evenly.data import collate, open_store
from evenly.data.raw import Array, prepare, table
from evenly.data.raw.decode import decoded
from evenly.data.raw.readers import spelled
from evenly.data.raw.streamed import Decoders, reader_of
from hubs import picture, tone
from stores import assert_same, npy, pack

READERS = {
    "png": "image(size=[4,6])",
    "wav": "spectrogram(seconds=0.25,sample_rate=8000)",
    "npy": "array(kind=sequence,ragged=true)",
}


def members(rows):
    """Of row k a picture, a sound, k + 1 time steps, a text and a class; some lack one of them."""
    for k in rows:
        files = {
            "png": picture(2 * k) if k % 7 else None,
            "wav": tone(k / 100),
            "npy": npy(np.full((k + 1, 2), k / 3, np.float32)) if k % 5 else None,
            "txt": f"the {('cat', 'dog')[k % 2]} of row {k}",
            "cls": str(k % 2),
        }
        yield from ((f"{k:03}.{end}", x) for end, x in files.items() if x is not None)


def shards(folder, count=36):
    """Three archives, of which the path names all."""
    for n in range(3):
        pack(folder / f"pets-{n}.tar", list(members(range(n * count // 3, (n + 1) * count // 3))))
    return folder / "pets-{0..2}.tar"


def source_of(folder):
    return table(folder / "pets-{0..2}.tar", None, READERS)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """The folder of the shards, of the store and of what is streamed."""
    folder = tmp_path_factory.mktemp("both")
    source = table(shards(folder), None, READERS)
    prepare(source, folder / "store", workers=2)
    prepare(source, folder / "streamed", workers=2, stream=True)
    return folder


class TestValues:
    def test_all_are_those_of_the_store(self, both):
        assert_same(open_store(both / "store"), open_store(both / "streamed"))

    def test_in_any_order_again_and_again(self, both):
        one, two = (open_store(both / name).split("train") for name in ("store", "streamed"))
        rows = [5, 0, 5, 11, 3, 0]
        for name, x in one.__getitems__(rows)["inputs"].items():
            y = two.__getitems__(rows)["inputs"][name]
            pairs = zip(x, y, strict=True) if isinstance(x, tuple) else [(x, y)]
            assert all(torch.equal(p, q) for p, q in pairs)

    def test_with_noise_and_what_is_taken_away(self, both):
        rates = {"train": {"npy": 0.5, "png": 0.3}}
        data = [open_store(both / name) for name in ("store", "streamed")]
        assert_same(*(x.noisy({"png": 1.0, "npy": 2.0}).missing(rates, 0) for x in data))

    def test_any_number_of_processes(self, both):
        source = source_of(both)
        cells = [sample.cells["wav"] for sample in source.samples[:5]]
        found = [Decoders(source.readers, "x", count)("wav", cells) for count in (1, 3)]
        assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))

    def test_what_is_small_is_held_and_the_rest_is_not(self, both):
        files = {f.relative_to(both / "streamed").as_posix() for f in files_of(both / "streamed")}
        assert {"inputs/txt.memmap", "index/png.memmap", "length/npy.memmap"} <= files
        assert not files & {"inputs/png.memmap", "inputs/wav.memmap", "inputs/npy.memmap"}
        data = open_store(both / "streamed")
        assert data.is_streamed
        assert data.nbytes == sum(x.nbytes for x in data._inputs["txt"])
        assert any("are decoded in every epoch, from 3 shards" in note for note in data.notes)

    def test_readers_are_spelled_whole(self):
        reader = Array("sequence", "km/h", ragged=True, rate=0.5)
        assert reader_of(spelled(reader, whole=True)) == reader


def files_of(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


LOADED = """
import sys
from pathlib import Path
import torch
from torch.utils.data import DataLoader
from evenly.data import collate, open_store

if __name__ == "__main__":
    held, part = (open_store(Path(sys.argv[1], x)).split("train") for x in ("store", "streamed"))
    whole = part.__getitems__(range(len(part)))["inputs"]["png"]  # the pool has started
    assert torch.equal(whole, held.__getitems__(range(len(held)))["inputs"]["png"])
    loader = DataLoader(part, 5, num_workers=int(sys.argv[2]), collate_fn=collate)
    assert torch.equal(torch.cat([batch["inputs"]["png"] for batch in loader]), whole)
"""


class TestLoaders:
    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_workers_of_a_loader_decode_themselves(self, both, workers, tmp_path):
        # In a program of its own: the workers are forked, and other tests have left threads.
        (tmp_path / "loaded.py").write_text(LOADED, encoding="utf-8")
        command = [sys.executable, tmp_path / "loaded.py", both, str(workers)]
        subprocess.run(command, check=True, timeout=100)

    def test_a_copy_has_processes_of_its_own(self, both):
        part = open_store(both / "streamed").split("val")
        copied = pickle.loads(pickle.dumps(part))
        one, two = (x.__getitems__([0, 1])["inputs"]["wav"] for x in (part, copied))
        assert torch.equal(one, two)


def overwritten(folder, column, at=0):
    """The path of the shard in which one byte of the first sample that has a file is another."""
    cells = [s.cells[column] for s in source_of(folder).samples if s.split == "train"]
    part = [cell for cell in cells if cell][at]
    with part.path.open("r+b") as file:
        file.seek(part.start + part.size - 1)
        last = file.read(1)[0]
        file.seek(part.start + part.size - 1)
        file.write(bytes([last ^ 1]))
    return part.path


class TestChanges:
    def streamed(self, folder):
        shards(folder)
        return self.prepared(folder)

    def prepared(self, folder):
        readers = {name: READERS[name] for name in ("wav", "npy")}
        source = table(folder / "pets-{0..2}.tar", [*readers], readers)
        prepare(source, folder / "streamed", workers=1, stream=True)
        return folder / "streamed"

    def test_other_bytes(self, tmp_path):
        store = self.streamed(tmp_path)
        part = open_store(store).split("train")
        before = part.__getitems__(range(len(part)))
        path = overwritten(tmp_path, "wav")
        with pytest.raises(
            ValueError, match=rf"^{store}: .*: wav: {path}: has changed since it was prepared\. Re"
        ):
            part.__getitems__(range(len(part)))
        others = part.of("npy").__getitems__(range(len(part)))["inputs"]["npy"]
        assert torch.equal(others.values, before["inputs"]["npy"].values)

    def test_another_size_and_none(self, tmp_path):
        store = self.streamed(tmp_path)
        path = tmp_path / "pets-1.tar"
        with path.open("ab") as file:
            file.write(bytes(512))
        with pytest.raises(ValueError, match=rf"{path}: has .* bytes, and had .* when {store} was"):
            open_store(store)
        path.unlink()
        with pytest.raises(FileNotFoundError, match=rf"^{path}: there is no such file, of which"):
            open_store(store)

    def test_begun_and_gone_on_with(self, tmp_path, monkeypatch):
        store = self.streamed(tmp_path)
        whole = (store / "dataset.json").read_text()
        journal = store / "journal.jsonl"
        lines = journal.read_text().splitlines(keepends=True)
        journal.write_text("".join(lines[:21]) + lines[21][:9])  # as if killed while it wrote
        (store / "dataset.json").unlink()
        assert [json.loads(line)["sample"] for line in lines[1:]] == list(range(36))
        asked = []

        def noted(source, waiting, workers):
            asked.extend(waiting)
            return decoded(source, waiting, workers)

        monkeypatch.setattr(sys.modules["evenly.data.raw.prepare"], "decoded", noted)
        self.prepared(tmp_path)
        assert asked == list(range(20, 36))
        assert (store / "dataset.json").read_text() == whole

    def test_without_shards(self, tmp_path):
        (tmp_path / "a.csv").write_text(
            "x,label\n" + "".join(f"{k / 3},{k % 2}\n" for k in range(40))
        )
        with pytest.raises(ValueError, match=r"^a: --stream needs files in \.tar shards"):
            prepare(table(tmp_path / "a.csv"), tmp_path / "store", workers=1, stream=True)

    def test_a_store_is_not_made_where_one_is_streamed(self, both):
        with pytest.raises(ValueError, match=r"holds a store made from other files or"):
            prepare(source_of(both), both / "streamed", workers=1)

    def test_broken_files_are_left_out(self, tmp_path):
        files = [
            m for k in range(24) for m in [(f"{k:02}.wav", tone(0.1)), (f"{k:02}.cls", "ab"[k % 2])]
        ]
        files[8] = (files[8][0], files[8][1][:100])
        source = table(pack(tmp_path / "a.tar", files), None, {"wav": READERS["wav"]})
        prepare(source, tmp_path / "store", workers=1, skip_broken=True, stream=True)
        data = open_store(tmp_path / "store")
        assert sum(len(data.split(name)) for name in ("train", "val", "test")) == 23
        assert "1 of 24 samples were left out as broken." in data.notes


def memory(folder):
    """Reads pictures of 236 MB in all; prints by how many MB the peak of memory grew."""
    for n in range(10):
        files = [
            [(f"{k:03}.png", picture(k % 256)), (f"{k:03}.cls", "ab"[k % 2])]
            for k in range(30 * n, 30 * n + 30)
        ]
        pack(folder / f"a-{n}.tar", [member for pair in files for member in pair])
    source = table(folder / "a-{0..9}.tar", None, {"png": "image(size=[512,512])"})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    prepare(source, folder / "store", workers=1, stream=True)
    data = open_store(folder / "store")
    for split in ("train", "val", "test"):
        for _ in DataLoader(data.split(split), 4, collate_fn=collate):
            pass
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
    print(sum(file.stat().st_size for file in (folder / "store").rglob("*") if file.is_file()))


@pytest.mark.slow
def test_neither_memory_nor_the_store_grow_with_the_shards(tmp_path):
    ran = forked.run(memory, tmp_path)
    assert ran.returncode == 0, ran.stderr
    grown, stored = map(int, ran.stdout.split())
    assert grown < 130
    assert stored < 200_000
