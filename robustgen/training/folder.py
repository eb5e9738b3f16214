"""The folder of one training: refuses another's, and writes each file as a whole, so that it can be killed anywhere."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import torch

from robustgen import durable
from robustgen.errors import RecordError, RobustgenError, SpecError
from robustgen.progress import Progress
from robustgen.ranks import Ranks

__all__ = ["CHECKPOINT_SECONDS", "AnyRecipe", "TrainingFolder", "in_words", "open_folder"]

CHECKPOINT_SECONDS = 120.0  # between two checkpoints, at most


class AnyRecipe(Protocol):
    """What a folder asks of a recipe."""

    @property
    def name(self) -> str: ...

    def to_dict(self) -> dict[str, Any]: ...

    def differences(self, other: Any) -> list[str]: ...


class TrainingFolder:
    """Files: recipe.json, checkpoint.pt, metrics.jsonl, train.log, and the results named by the caller.

    Args:
        path: the folder, made if missing.
        recipe: what is trained.
        read_recipe: makes a recipe of what recipe.json holds.
        progress: told of every note.
        results: names of the files that the training ends with.

    Raises:
        RecordError: the folder holds another training, or files of one whose recipe is lost.
        SpecError: it cannot be written.
    """

    def __init__(
        self,
        path: Path,
        recipe: AnyRecipe,
        read_recipe: Callable[[Mapping[str, Any]], AnyRecipe],
        progress: Progress,
        results: tuple[str, ...],
    ) -> None:
        self.path, self.progress = path.expanduser(), progress
        self._check(recipe, read_recipe, ("checkpoint.pt", "metrics.jsonl", "train.log", *results))

    def _check(
        self, recipe: AnyRecipe, read_recipe: Callable[[Mapping[str, Any]], AnyRecipe], own_files: tuple[str, ...]
    ) -> None:
        held = self.path / "recipe.json"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if held.is_file():
                other = read_recipe(json.loads(held.read_text(encoding="utf-8")))
            elif own := [name for name in own_files if (self.path / name).exists()]:
                raise RecordError(f"--out: {self.path} holds {own[0]}, but no recipe.json; name another folder.")
            else:
                durable.replace(held, (json.dumps(recipe.to_dict(), indent=2) + "\n").encode())
                return
        except (ValueError, SpecError) as error:
            raise RecordError(f"{held} cannot be read ({error}); name another folder.") from error
        except OSError as error:
            raise SpecError(f"--out: {self.path} cannot be written: {error.strerror}.") from error
        if differences := recipe.differences(other):
            raise RecordError(
                f"--out: {self.path} holds another training: {'; '.join(differences)}. Name another folder."
            )

    def note(self, text: str) -> None:
        """Tell the progress and train.log."""
        self.progress.note(text)
        with self.disk_errors(), (self.path / "train.log").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """metrics.jsonl holds exactly the history, also after a return to an earlier state."""
        self.write("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in history).encode())

    def write_checkpoint(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint; a crash leaves the old or the new one."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.write("checkpoint.pt", buffer.getvalue())

    def read_checkpoint(self) -> dict[str, Any] | None:
        """The checkpoint, or None where there is none yet."""
        path = self.path / "checkpoint.pt"
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch promises no set of types for a damaged file
            raise RecordError(
                f"{path} is damaged ({type(error).__name__}); remove the folder to begin again."
            ) from error
        return state

    def write(self, name: str, content: bytes) -> Path:
        """Write a file so that it is either the old or the new one."""
        with self.disk_errors():
            durable.replace(self.path / name, content)
        return self.path / name

    @contextlib.contextmanager
    def disk_errors(self) -> Iterator[None]:
        """Turn what the disk complains about into one sentence."""
        try:
            yield
        except OSError as error:
            raise RobustgenError(
                f"{self.path} cannot be written: {error.strerror}; the last checkpoint is kept."
            ) from error


@contextlib.contextmanager
def open_folder(
    out: Path,
    recipe: AnyRecipe,
    read_recipe: Callable[[Mapping[str, Any]], AnyRecipe],
    progress: Progress,
    results: tuple[str, ...],
    ranks: Ranks,
) -> Iterator[TrainingFolder]:
    """The folder, for nobody else meanwhile; rank 0 makes it, and reports when it cannot, before the others look.

    Raises:
        BusyError: another process trains there.
    """
    if not ranks.first:
        ranks.gather(0)
    folder = TrainingFolder(out, recipe, read_recipe, progress, results)
    if not ranks.first:
        yield folder
        return
    lock = durable.FolderLock(folder.path)
    try:
        ranks.gather(0)
        yield folder
    finally:
        lock.release()


def in_words(seconds: float) -> str:
    """A time left, for people: "40 s", "12 min", "2.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
