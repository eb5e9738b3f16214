"""Double masking: masks cover every patch, and what is certified withstands patches that are searched for."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from robustgen.certify.patchcleanser import certify_patches, double_masking, mask_set
from robustgen.cli import _run
from robustgen.errors import SpecError


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


def test_by_command(capsys: pytest.CaptureFixture[str]) -> None:
    """Larger patches, fewer certificates; never more than are right without a patch."""
    assert _run(["certify-patches", "fmnist-standard", "--patch", "1,4", "-n", "8", "--per-axis", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    small, large = (row["certified"]["value"] for row in found["rows"])
    assert found["clean"]["value"] >= small >= large
    assert _run(["certify-patches", "fmnist-standard", "--patch", "40", "-n", "2"]) == 2
    assert "1 to 28 pixels wide, got 40" in capsys.readouterr().err
    assert _run(["certify-patches", "fmnist-standard", "--patch", "a", "-n", "2"]) == 2
    assert "--patch must be sides in pixels" in capsys.readouterr().err
