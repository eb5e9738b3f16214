"""What `robustgen generator judge` needs from the disk: generated images, the data they imitate, classifiers."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from robustgen import durable
from robustgen.cards import Card, bundled_cards
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.dataset import Dataset
from robustgen.environment import pick_device
from robustgen.errors import SpecError
from robustgen.generator.features import classifier_features, inception_features
from robustgen.generator.generated import read_generated, read_images
from robustgen.generator.judge import Judgement, JudgeOptions, judge
from robustgen.generator.memorisation import audit_memorisation, duplicates
from robustgen.progress import Progress

__all__ = ["JudgeRequest", "classifier_for", "judge_file"]


@dataclass(frozen=True, kw_only=True)
class JudgeRequest:
    """What was typed; see `robustgen generator judge --help`."""

    file: Path
    against: str = "fashion-mnist"
    features: str | None = None
    inception: Path | None = None
    n: int | None = None
    cas: bool = False
    pairs: Path | None = None
    without_duplicates: Path | None = None
    seed: int = 0
    data_dir: Path | None = None
    device: str = "auto"


def judge_file(request: JudgeRequest, progress: Progress) -> Judgement:
    """Judge the images of a file, and write what else was asked for.

    Raises:
        SpecError: file and data do not fit, or an impossible request.
        ArtifactError: a file is missing or cannot be read.
    """
    where, out = pick_device(request.device), request.without_duplicates
    if out is not None and (out.suffix != ".npz" or out.exists()):
        why = "exists; name another file" if out.exists() else "must end in .npz"
        raise SpecError(f"--without-duplicates: {out} {why}.")
    options = JudgeOptions(n=request.n, cas=request.cas, pairs=request.pairs, seed=request.seed, device=where)
    images, labels = read_generated(request.file)
    train = load_data(request.against, data_dir=request.data_dir, split="train")
    test = load_data(request.against, data_dir=request.data_dir)
    extractors = [classifier_features(load_classifier(request.features or classifier_for(request.against)), where)]
    if request.inception is not None:
        extractors.append(inception_features(request.inception, where))
    judgement = judge(images, labels, train, test, extractors, options, progress)
    if out is not None:
        _write_without_copies(images, labels, train, options, progress, out)
    return judgement


def classifier_for(data: str) -> str:
    """A bundled classifier of that data, an undefended one where there is one.

    Raises:
        SpecError: there is none.
    """
    cards = {name: Card.load(path) for name, path in bundled_cards().items()}
    fitting = sorted((card.kind != "standard", name) for name, card in cards.items() if card.data == data)
    fitting = [(robust, name) for robust, name in fitting if cards[name].kind != "decoy"]
    if not fitting:
        raise SpecError(f"no bundled classifier knows {data}; name one with --features.")
    return fitting[0][1]


def _write_without_copies(
    images: Tensor, labels: Tensor | None, train: Dataset, options: JudgeOptions, progress: Progress, out: Path
) -> None:
    """The images that neither repeat an earlier one nor copy a training image, in their order."""
    training = read_images(train)
    audit = audit_memorisation(images, training, training[:1], options.memorisation, progress)
    gone = {*duplicates(images, distance=options.near), *audit.flagged_ids}
    kept = torch.tensor([k for k in range(len(images)) if k not in gone])
    arrays = {"image": images[kept].numpy()} | ({} if labels is None else {"label": labels[kept].numpy()})
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    with durable.disk_errors(out):
        durable.replace(out, buffer.getvalue())
