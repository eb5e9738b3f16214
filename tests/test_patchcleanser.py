"""Double masking: masks cover every patch, and what is certified withstands patches that are searched for."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import Tensor, nn

from robustgen import durable
from robustgen.certify import patches_run
from robustgen.certify.patchcleanser import certify_patches, double_masking, mask_set
from robustgen.cli import _run
from robustgen.errors import SpecError
from tests.test_schemas import schema


@pytest.mark.parametrize(
    ("height", "width", "patch", "per_axis"), [(28, 28, 5, 6), (32, 20, 3, 4), (9, 9, 9, 3), (7, 8, 1, 9)]
)
def test_every_patch_lies_under_a_mask(height: int, width: int, patch: int, per_axis: int) -> None:
    """For all places; and there are at most so many masks."""
    masks = mask_set(height, width, patch, per_axis)
    assert len(masks.keep) <= per_axis**2 or per_axis > height
    covered = 1 - masks.keep[:, 0]
    for top in range(height - patch + 1):
        for left in range(width - patch + 1):
            window = covered[:, top : top + patch, left : left + patch]
            assert bool((window.flatten(1).sum(1) == patch * patch).any())


class Votes(nn.Module):
    """Says 1 where the mean of the image, masked pixels left out as zeros, exceeds a threshold."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, 1, 10, 10) -> (B, 2)."""
        mean = x.flatten(1).mean(1)
        return torch.stack([0.3 - mean, mean - 0.3], 1)


def test_certified_images_withstand_every_patch_tried() -> None:
    """All places with black, white and random patches; images that are not certified fall to some of them."""
    masks, model = mask_set(10, 10, 2, 3), Votes()
    x = torch.linspace(0.1, 0.9, 40).reshape(-1, 1, 1, 1).expand(-1, 1, 10, 10).contiguous()
    y = (x.flatten(1).mean(1) > 0.3).long()
    certified = certify_patches(model, x, y, masks)
    assert 0.3 < float(certified.float().mean()) < 1
    generator = torch.Generator().manual_seed(0)
    for content in (torch.zeros(2, 2), torch.ones(2, 2), torch.rand(2, 2, generator=generator)):
        for top in range(9):
            for left in range(0, 9, 2):
                attacked = x.clone()
                attacked[:, :, top : top + 2, left : left + 2] = content
                wrong = double_masking(model, attacked, masks) != y
                assert not bool((wrong & certified).any())


def test_a_lone_dissenter_that_every_second_mask_confirms_is_believed() -> None:
    """The patch rules until the mask that covers it is on: then its absence is confirmed by all others."""

    class Ruled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            patch = (x[:, 0, :2, :2] > 2).flatten(1).any(1)  # a value that only the patch has
            return torch.stack([1 - patch.float(), patch.float()], 1)

    x = torch.full((1, 1, 10, 10), 0.5)
    x[:, :, :2, :2] = 9.0
    assert double_masking(Ruled(), x, mask_set(10, 10, 2, 3)).tolist() == [0]


def test_batches_change_nothing() -> None:
    """One pair of masks at a time, or all."""
    masks, x = mask_set(10, 10, 3, 3), torch.rand(6, 1, 10, 10, generator=torch.Generator().manual_seed(1))
    y = (x.flatten(1).mean(1) > 0.3).long()
    assert torch.equal(
        certify_patches(Votes(), x, y, masks, batch_size=1), certify_patches(Votes(), x, y, masks, batch_size=5000)
    )


def test_impossible_patches() -> None:
    """Refused in a sentence."""
    with pytest.raises(SpecError, match="1 to 7 pixels wide, got 8"):
        mask_set(7, 9, 8)
    with pytest.raises(SpecError, match="masks an axis must be >= 1"):
        mask_set(7, 9, 2, 0)


def test_by_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Larger patches, fewer certificates; never more than are right without a patch."""
    asked = ["certify-patches", "fmnist-standard", "--patch", "1,4", "-n", "8", "--per-axis", "3"]
    assert _run([*asked, "--out", str(tmp_path / "run"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    small, large = (row["certified"]["value"] for row in found["rows"])
    assert found["clean"]["value"] >= small >= large
    lines = [json.loads(line) for line in (tmp_path / "run" / "patches.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines] == list(range(8))
    assert sum(line["predict"] == line["label"] for line in lines) / 8 == found["clean"]["value"]
    assert _run(["certify-patches", "fmnist-standard", "--patch", "40", "-n", "2"]) == 2
    assert "1 to 28 pixels wide, got 40" in capsys.readouterr().err
    assert _run(["certify-patches", "fmnist-standard", "--patch", "a", "-n", "2"]) == 2
    assert "--patch must be sides in pixels" in capsys.readouterr().err


WAYS = pytest.mark.parametrize(
    "way", [["--patch", "1,3", "--per-axis", "2"], ["--method", "band", "--patch", "1,2", "--theta", "0.1"]]
)


class Killed(BaseException):
    """What no handler catches."""


@WAYS
def test_killed_it_goes_on(
    way: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Between two images, and in the middle of a line: the same lines and the same record, byte for byte."""
    monkeypatch.chdir(tmp_path)
    asked = ["certify-patches", "fmnist-standard", "-n", "7", *way, "--out", "run", "--json"]
    assert _run(asked) == 0
    whole = {path.name: path.read_bytes() for path in Path("run").iterdir()}
    assert set(whole) == {"spec.json", "patches.jsonl", "record.json"}
    Path("run").rename("uninterrupted")
    add = durable.Appender.add

    def add_some(file: durable.Appender, content: bytes) -> None:
        """The fourth line is cut off, and with it the process."""
        third = file.path.is_file() and file.path.read_bytes().count(b"\n") == 3
        add(file, content[:20] if third else content)
        if third:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(durable.Appender, "add", add_some)
        with pytest.raises(Killed):
            _run(asked)
    torn = whole["patches.jsonl"].splitlines(keepends=True)
    assert Path("run/patches.jsonl").read_bytes() == b"".join(torn[:3]) + torn[3][:20]
    assert not Path("run/record.json").exists()
    capsys.readouterr()
    calls = []
    monkeypatch.setattr(
        patches_run, "_certify", lambda job, id_, do=patches_run._certify: calls.append(id_) or do(job, id_)
    )
    assert _run(asked[:-1]) == 0
    assert "3 images were certified before" in capsys.readouterr().err
    assert calls == [3, 4, 5, 6], "nothing is done twice"
    assert {path.name: path.read_bytes() for path in Path("run").iterdir()} == whole
    assert _run(asked) == 0
    assert len(calls) == 4, "a finished run is only read"
    assert json.loads(capsys.readouterr().out) == json.loads(whole["record.json"])


@WAYS
def test_each_image_is_judged_by_itself(way: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fewer images, the same lines."""
    lines = []
    for n in ("2", "5"):
        out = tmp_path / n
        assert _run(["certify-patches", "fmnist-standard", "-n", n, *way, "--out", str(out)]) == 0
        assert f"record: {out}" in capsys.readouterr().out
        lines.append((out / "patches.jsonl").read_bytes())
    assert lines[1].startswith(lines[0])


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--patch", "3", "--per-axis", "2"], "patches: (3,) / (2,)"),
        (["--per-axis", "3"], "per_axis: 3 / 2"),
        (["--per-axis", "2", "-n", "1"], "ids: 0 / 0-1"),
        (["--method", "band"], "method: band / masks"),
    ],
)
def test_other_settings_are_refused(
    changed: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder that holds a run, finished or not; nothing in it changes."""
    asked, out = ["certify-patches", "fmnist-standard", "--patch", "2", "-n", "2"], tmp_path / "run"
    assert _run([*asked, "--per-axis", "2", "--out", str(out)]) == 0
    for finished in (True, False):
        if not finished:
            (out / "record.json").unlink()
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        assert _run([*asked, *changed, "--out", str(out)]) == 2
        error = capsys.readouterr().err
        assert "holds another certification against patches (asked / there: " in error
        assert said in error
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_what_settings_do_not_matter_are_no_others(tmp_path: Path) -> None:
    """A threshold means nothing to masks, nor do masks to votes."""
    asked = ["certify-patches", "fmnist-standard", "--patch", "2", "-n", "1"]
    for name, way, idle in (
        ("masks", ["--per-axis", "2"], ["--theta", "0.9", "--size", "3"]),
        ("votes", ["--method", "band"], ["--per-axis", "3"]),
    ):
        assert _run([*asked, *way, "--out", str(tmp_path / name)]) == 0
        assert _run([*asked, *way, *idle, "--out", str(tmp_path / name)]) == 0


def test_folders_that_cannot_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file, a folder of other work, a line that cannot be read, a classifier without one answer."""
    asked, out = ["certify-patches", "fmnist-standard", "--patch", "2", "--per-axis", "2", "-n", "2"], tmp_path / "run"
    (tmp_path / "file").touch()
    assert _run([*asked, "--out", str(tmp_path / "file")]) == 2
    assert "is a file; name a folder" in capsys.readouterr().err
    out.mkdir()
    (out / "spec.json").write_text('{"noise": "normal"}')
    assert _run([*asked, "--out", str(out)]) == 2
    assert "is no certification against patches: expected the fields" in capsys.readouterr().err
    (out / "spec.json").unlink()
    (out / "patches.jsonl").write_text("{}\n")
    assert _run([*asked, "--out", str(out)]) == 2
    assert "patches.jsonl, line 1, cannot be read" in capsys.readouterr().err
    assert not (out / "lock").exists()
    assert _run([*asked[:1], "decoy-noise", *asked[2:], "--out", str(tmp_path / "noise")]) == 2
    assert "answers the same image in two ways" in capsys.readouterr().err
    assert not (tmp_path / "noise").exists()


@WAYS
def test_files_obey_their_schemas(way: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Specification, lines and record; every field is described; verify says what to do instead."""
    out = tmp_path / "run"
    assert _run(["certify-patches", "fmnist-standard", "-n", "2", *way, "--out", str(out)]) == 0
    for file in ("spec", "record"):
        jsonschema.validate(json.loads((out / f"{file}.json").read_text()), schema(f"patches-{file}"))
    for line in map(json.loads, (out / "patches.jsonl").read_text().splitlines()):
        jsonschema.validate(line, schema("patches-line"))
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**line, "predict": -1}, schema("patches-line"))
    for kind, its in ((patches_run.PatchSpec, "patches-spec"), (patches_run.PatchResult, "patches-line")):
        described = schema(its)["properties"]
        assert {f.name for f in fields(kind)} == set(described)
        assert all("description" in value for value in described.values())
    assert _run(["verify", str(out)]) == 2
    assert "run its certify-patches command again" in capsys.readouterr().err
