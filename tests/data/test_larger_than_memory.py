"""Data larger than memory: every step reads the mapped images it needs, under a cap that any copy of them would break.

The cap on address space counts the mapped file itself, so it is what is mapped at the start, the file, and a headroom a
fraction of the file's size. The file is sparse: a hole takes no disk.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="caps on memory are those of Linux")
ROOT = Path(__file__).resolve().parents[2]

READ = """
import json, resource, sys
from pathlib import Path
import numpy as np
import torch
from fairquant.config.schema import TrainSection
from fairquant.data.batches import iterate
from fairquant.data.store import Store
from fairquant.importance.measure import measure_importance
from fairquant.models.build import build
from fairquant.models.spec import ModelSpec
from fairquant.train.loop import fit
from fairquant.train.predict import predict

CPU = torch.device("cpu")


def steps(folder):
    store = Store.open(folder)
    spec = ModelSpec("squeezenet1_1", store.classes, store.image_size, store.meta["mean"], store.meta["std"])
    model = build(spec, seed=0)
    rows = np.random.default_rng(0).permutation(len(store))[:24]
    seen = [batch.images.shape[0] for batch in iterate(store, rows, batch_size=8, device=CPU, augment="paper")]
    yield "iterate", seen
    section = TrainSection(epochs=1, batch_size=8, lr=1e-3, augment="light")
    yield "train", fit(model, store, section=section, seed=0, device=CPU, progress=False).best_epoch
    yield "predict", len(predict(model, store, "val", batch_size=8, device=CPU).logits)
    maps = measure_importance(
        model, store, metric="grape", batch_size=4, samples_per_group=4, device=CPU, seed=0, progress=False
    )
    yield "importance", list(maps.counts)


torch.set_num_threads(1)
small, large, headroom = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
warm = dict(steps(small))  # what is imported late is imported now
mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
cap = mapped + (large / "images.npy").stat().st_size + headroom
resource.setrlimit(resource.RLIMIT_AS, (cap, cap))
found = dict(steps(large))
try:
    np.array(Store.open(large).images)
except MemoryError:
    found["copy"] = "MemoryError"
print(json.dumps([warm, found]))
"""

PREPARE = """
import json, resource, sys
from pathlib import Path
from fairquant.config.load import parse_config
from fairquant.data.prepare import prepare
from fairquant.data.store import Store
import numpy as np

folder, size, headroom = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])


def config(name):
    return parse_config({"data": {"name": "folder", "path": str(folder / name), "image_size": size}, "workers": 1})


prepare(config("few"), folder / "prepared-few")  # what is imported late is imported now
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
cap = int(status["VmData"].split()[0]) * 1024 + headroom
resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
found = {"samples": prepare(config("many"), folder / "prepared")["samples"]}
images = Store.open(folder / "prepared").images
found["bytes"] = images.nbytes
try:
    np.array(images)
except MemoryError:
    found["copy"] = "MemoryError"
print(json.dumps(found))
"""


def child(program: str, *arguments: object) -> object:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "COVERAGE_PROCESS_START": ""}
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sparse_store(folder: Path, *, n: int, size: int) -> None:
    """Write a prepared folder of ``n`` images: 16 of train and 16 of val spread over the file, all others test."""
    folder.mkdir()
    shape = (n, size, size, 3)
    images = np.lib.format.open_memmap(folder / "images.npy", mode="w+", dtype=np.uint8, shape=shape)
    rows = np.linspace(0, n - 1, 32).astype(int)
    for row in rows:
        images[row] = np.random.default_rng(row).integers(0, 256, shape[1:], dtype=np.uint8)
    splits = np.full(n, "test", dtype="<U5")
    splits[rows] = ["train", "val"] * 16
    kinds = [(number // 2 % 2, number // 4 % 2) for number in range(32)]
    codes = dict(zip(rows.tolist(), kinds, strict=True))
    lines = (f"s{i},{codes.get(i, (0, 0))[0]},{codes.get(i, (0, 0))[1]},{splits[i]}" for i in range(n))
    (folder / "samples.csv").write_text("\n".join(["id,label,group,split", *lines]) + "\n")
    meta = {"classes": ["a", "b"], "groups": ["x", "y"], "image_size": size, "mean": [0.5] * 3, "std": [0.3] * 3}
    (folder / "meta.json").write_text(json.dumps({**meta, "checksum": "none"}))


def test_every_step_reads_a_store_that_could_not_be_copied(tmp_path):
    sparse_store(tmp_path / "small", n=64, size=64)
    sparse_store(tmp_path / "large", n=40_000, size=160)
    assert (tmp_path / "large/images.npy").stat().st_size > 3e9
    assert (tmp_path / "large/images.npy").stat().st_blocks * 512 < 1e8
    steps = {"iterate": [8, 8, 8], "train": 1, "predict": 16, "importance": [4, 4]}
    assert child(READ, tmp_path / "small", tmp_path / "large", 500_000_000) == [steps, {**steps, "copy": "MemoryError"}]


def test_prepare_never_holds_all_images(tmp_path):
    random = np.random.default_rng(0)
    for name, count in (("few", 16), ("many", 400)):
        (tmp_path / name).mkdir()
        lines = ["image,label,group"]
        for index in range(count):
            image = random.integers(0, 256, (4, 4, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"{index}.png")
            lines.append(f"{index}.png,{index % 2},{'xy'[index // 2 % 2]}")
        (tmp_path / name / "labels.csv").write_text("\n".join(lines) + "\n")
    size, headroom = 320, 60_000_000
    expected = {"samples": 400, "bytes": 400 * size * size * 3, "copy": "MemoryError"}
    assert expected["bytes"] > 2 * headroom
    assert child(PREPARE, tmp_path, size, headroom) == expected
