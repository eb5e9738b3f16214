"""The engine against a plain float32 loop of the same attack: same model, images, batch size and verdicts.

The plain loop is what one writes first: batches one after the other, the network as it was loaded, every iteration for
every image. The engine lets broken images go, keeps its batch full and searches in the form that the processor likes.
"""

from __future__ import annotations

import torch

from robustgen import engine
from robustgen.attacks.apgd import APGDCE
from robustgen.benchmarks.harness import compare, store
from robustgen.classifiers import load_classifier
from robustgen.data import load_data
from robustgen.environment import tune_process
from robustgen.judge import Judge
from robustgen.oracle import Oracle
from robustgen.precision import SearchForm, SearchModel, choose_form
from robustgen.rng import ExampleRng
from robustgen.threat import ThreatModel

ATTACK = APGDCE(steps=40)
BATCH = 250


def main() -> None:
    """Measure, print, store."""
    tune_process()
    classifier, data, threat = load_classifier("fmnist-at"), load_data("fmnist-test-1k"), ThreatModel("linf", 0.1)
    x, y = data.batch(range(len(data)))
    judge, plain = Judge(classifier, threat), SearchModel(classifier, SearchForm())
    search, _ = choose_form(classifier, x, y)
    correct = (judge.predict(x) == y).nonzero().flatten()
    broken: dict[str, int] = {}

    def loop() -> None:
        count = 0
        for ids in correct.split(BATCH):
            state = ATTACK.init(Oracle(plain), x[ids], y[ids], threat, ExampleRng.of(0, ids))
            fooled = torch.zeros(len(ids), dtype=torch.bool)
            for _ in range(ATTACK.rounds):
                state = ATTACK.step(Oracle(plain), state)
                fooled |= state.logits.argmax(1) != y[ids]
            count += int(fooled.sum())
        broken["loop"] = count

    def ours(model: SearchModel) -> None:
        outcomes: list[engine.Outcome] = []
        engine.run(
            ATTACK, Oracle(model), judge, lambda ids: (x[list(ids)], y[list(ids)]), correct.tolist(), threat,
            seed=0, batch_size=BATCH, finish=outcomes.append,
        )  # fmt: skip
        broken[str(model.form)] = sum(o.broken for o in outcomes)

    chosen = compare(lambda: ours(search), loop)
    same_form = compare(lambda: ours(plain), loop)
    images = len(correct)
    result = {
        "what": f"APGD-CE, {ATTACK.steps} steps, fmnist-at, {images} images classified right, linf 0.1, batch {BATCH}",
        "form": str(search.form),
        "images": images,
        "broken": broken,
        "engine in its chosen form / plain float32 loop": chosen.summary(),
        "engine in plain float32 / plain float32 loop": same_form.summary(),
    }
    path = store("speed-engine", result, module="speed.engine")
    for name, side in (("chosen form", chosen), ("plain float32", same_form)):
        ratio = side.summary()["ratio"]
        rates = [images / sorted(seconds)[len(seconds) // 2] for seconds in (side.ours, side.theirs)]
        print(f"{name}: {rates[0]:.0f} against {rates[1]:.0f} images/s, ratio {ratio['median']:.2f}")
    print(path)


if __name__ == "__main__":
    main()
