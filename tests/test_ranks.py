"""Runs that torchrun shares: the record of one process, whatever the number of ranks, before and after a loss."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from robustgen.errors import SpecError
from robustgen.ranks import Ranks, joined_ranks
from robustgen.spec import RunSpec
from tests.helpers import ROOT, make_convnet

SAME = ("spec.json", "examples.jsonl", "record.json", "witnesses/adversarials-00000.safetensors")


def test_alone_a_process_is_rank_0_of_1() -> None:
    """Nothing to gather, nobody to wait for."""
    with joined_ranks() as ranks:
        assert Ranks(0, 1) == ranks
        assert ranks.first
        assert [7] == ranks.gather(7)
        assert ranks.from_first("x") == "x"


def test_ranks_that_were_given_different_things_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the rank and the field."""
    spec = RunSpec(
        classifier="a", weights_sha256="0" * 64, data="d", data_sha256="1" * 64, ids="0-9", threat="linf:0.1",
        plan="rapid", protocol="rapid/1", seed=0, precision="float32",
    )  # fmt: skip
    other = RunSpec(**{**{f: getattr(spec, f) for f in spec.__dataclass_fields__}, "weights_sha256": "2" * 64})
    monkeypatch.setattr(Ranks, "gather", lambda *_: [spec, spec, other])
    with pytest.raises(SpecError, match=r"rank 2 was given something else than rank 0 \(weights_sha256: 2"):
        Ranks(0, 3).agree(spec)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A classifier and 60 images."""
    (tmp_path / "net.py").write_text(
        "import os\nfrom tests.helpers import make_convnet\n\n\ndef make():\n"
        "    return make_convnet(seed=int(os.environ.get('RANK', 0)) if os.environ.get('DIFFER') else 0)\n"
    )
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    labels = make_convnet()(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).argmax(1).numpy()
    labels[:3] = (labels[:3] + 1) % 4
    np.savez(tmp_path / "data.npz", image=images, label=labels)
    return tmp_path


def start(work: Path, ranks: int, out: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """`robustgen eval`, by torchrun when there are several ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [
        sys.executable, *launcher, "-m", "robustgen", "eval", "python:net.py:make", "--data", "npz:data.npz",
        "-n", "60", "--threat", "linf:0.25", "--attacks", "apgd-ce:steps=10,square:steps=20", "--precision", "float32",
        "--out", out, "--json",
    ]  # fmt: skip
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(command, cwd=work, env=surroundings, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_any_number_of_ranks_leaves_the_same_folder(work: Path) -> None:
    """One, two and three ranks; and one rank that goes on with what two left half-way."""
    done = {n: start(work, n, f"run-{n}") for n in (1, 2, 3)}
    for ranks, process in done.items():
        assert process.returncode == 0, f"{ranks} ranks: {process.stderr[-3000:]}"
    records = [json.loads(process.stdout) for process in done.values()]
    assert 0 < records[0]["robust_accuracy"]["value"] < records[0]["clean_accuracy"]["value"]
    assert {record["robust_accuracy"]["value"] for record in records} == {records[0]["robust_accuracy"]["value"]}
    half = work / "run-2"
    files = sorted(str(path.relative_to(half)) for path in half.rglob("*") if path.is_file())
    assert sorted([*SAME, "seconds.json"]) == files
    for name in SAME:
        whole = (work / "run-1" / name).read_bytes()
        if name != "record.json":  # which holds the number of threads of a rank
            assert whole == (work / "run-2" / name).read_bytes() == (work / "run-3" / name).read_bytes()
    lines = (half / "examples.jsonl").read_text().splitlines(keepends=True)
    (half / "record.json").unlink()
    (half / "examples.jsonl").write_text("".join(lines[:20]))
    (half / "examples-1.jsonl").write_text("".join(lines[30:45]) + lines[45][:10])
    assert 0 == start(work, 1, "run-2").returncode
    assert (work / "run-1" / "examples.jsonl").read_bytes() == (half / "examples.jsonl").read_bytes()
    assert not (half / "examples-1.jsonl").exists()


@pytest.mark.slow
def test_a_rank_with_other_weights(work: Path) -> None:
    """Refused before any work, in a sentence; nothing is left."""
    process = start(work, 2, "run", DIFFER="1")
    assert process.returncode != 0
    assert "rank 1 was given something else than rank 0 (weights_sha256" in process.stderr
    assert not (work / "run").exists()
