"""`robustgen certify`, `certify-patches`, `certify-attack` and `certify-report`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from robustgen.cli_options import DataDir, Device, Json, Weights, app, with_progress

__all__: list[str] = []


@app.command("certify")
def certify_command(
    classifier: Annotated[
        str | None, typer.Argument(help="As in `robustgen eval` (default: the bundled one for that sigma).")
    ] = None,
    sigma: Annotated[float, typer.Option(help="Of the noise, in pixels of [0, 1].")] = 0.25,
    denoise: Annotated[str | None, typer.Option(help="Generator that denoises first, such as fmnist-edm.")] = None,
    noise: Annotated[str, typer.Option(help="normal certifies in L2; uniform and laplace in L1.")] = "normal",
    method: Annotated[str, typer.Option(help="fixed: as Cohen et al.; anytime: stops when it is decided.")] = "anytime",
    profile: Annotated[str, typer.Option(help="Of anytime: exact, or fast for fewer draws.")] = "exact",
    radii: Annotated[str, typer.Option(help="Of the table, with commas.")] = "0,0.25,0.5,0.75,1",
    samples: Annotated[int, typer.Option(help="Draws an example at most.")] = 100_000,
    selection: Annotated[int, typer.Option(help="Draws that choose the class.")] = 100,
    alpha: Annotated[float, typer.Option(help="Probability of a false certificate, of one example.")] = 0.001,
    data: Annotated[str, typer.Option(help="Data set by name, folder:PATH or npz:PATH.")] = "fmnist-test-1k",
    n: Annotated[int | None, typer.Option("--n", "-n", help="The first N examples.")] = None,
    ids: Annotated[str | None, typer.Option(help="These examples: 0-99,205 or a file of ids.")] = None,
    seed: Annotated[int, typer.Option(help="Of all noise.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/certify-...).")] = None,
    batch_size: Annotated[int, typer.Option(help="Noised images sent at once.")] = 1000,
    precision: Annotated[
        str, typer.Option(help="Form of the function that is certified: auto takes the fastest; or float32, ...")
    ] = "auto",
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Certify a classifier by randomized smoothing: radii within which no change of the image changes the class.

    Examples -

      robustgen certify fmnist-standard --sigma 0.25 --denoise fmnist-edm -n 100

      robustgen certify python:model.py:make --sigma 0.5 --method fixed --data cifar10
    """
    from robustgen.certify.report import render
    from robustgen.certify.request import CertificationRequest, certify_request
    from robustgen.environment import tune_process
    from robustgen.ranks import joined_ranks

    tune_process()
    request = CertificationRequest(
        classifier=classifier, sigma=sigma, denoise=denoise, noise=noise, method=method, profile=profile, radii=radii,
        samples=samples, selection=selection, alpha=alpha, data=data, n=n, ids=ids, seed=seed, precision=precision,
        weights=weights, data_dir=data_dir,
    )  # fmt: skip
    begun = time.monotonic()
    with joined_ranks() as ranks:
        record = with_progress(
            lambda progress: certify_request(
                request, out=out, batch_size=batch_size, device=device, progress=progress, ranks=ranks
            ),
            silent=json_ or not ranks.first,
        )
        if not ranks.first:
            return
    record["seconds"] = round(time.monotonic() - begun, 3)
    if json_:
        print(json.dumps(record))
        return
    shown = {key: record[key] for key in ("n", "certified", "acr", "abstained", "norm", "linf")}
    row = {"name": record["spec"]["classifier"], **shown}
    print(render({"radii": record["spec"]["radii"], "rows": [row]}, "rich"))
    print(
        f"{record['samples'] / record['n']:,.0f} draws an example, {record['seconds']:.1f} s; record: {record['run']}"
    )


@app.command("certify-patches")
def certify_patches_command(
    classifier: Annotated[str, typer.Argument(help="As in `robustgen eval`.")] = "fmnist-standard",
    patch: Annotated[str, typer.Option(help="Sides of square patches in pixels, with commas.")] = "2,4,6",
    method: Annotated[str, typer.Option(help="masks: PatchCleanser; band or block: votes over ablations.")] = "masks",
    per_axis: Annotated[int, typer.Option(help="Of masks: how many an axis; more cover less of the image each.")] = 6,
    axis: Annotated[str, typer.Option(help="Of band: columns or rows are kept.")] = "columns",
    size: Annotated[int, typer.Option(help="Of band and block: pixels that are kept along an axis.")] = 4,
    theta: Annotated[float, typer.Option(help="Of band and block: a class of this probability gets a vote.")] = 0.3,
    fill: Annotated[
        float | None, typer.Option(help="Of band and block: what ablated pixels are (default: unknown, or 0).")
    ] = None,
    data: Annotated[str, typer.Option(help="Data set by name, folder:PATH or npz:PATH.")] = "fmnist-test-1k",
    n: Annotated[int, typer.Option("--n", "-n", help="The first N examples.")] = 200,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: runs/certify-patches-...).")] = None,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Certify against adversarial patches, exactly: for every content and place of the patch.

    Double masking (PatchCleanser) takes any classifier, votes over ablations one trained by method "ablation". Images
    that a run folder holds are not certified again: the same command goes on after a kill.

    Examples -

      robustgen certify-patches fmnist-standard --patch 2,4 -n 100

      robustgen certify-patches trained/fmnist-ablation/fmnist-ablation.json --method band --patch 2,4
    """
    from robustgen.certify.patches import PatchRequest, patch_lines
    from robustgen.certify.patches_run import certify_against_patches
    from robustgen.environment import tune_process
    from robustgen.errors import SpecError

    try:
        sides = tuple(int(part) for part in patch.split(","))
    except ValueError:
        raise SpecError(f"--patch must be sides in pixels with commas, such as 2,4,6, got '{patch}'.") from None
    tune_process()
    request = PatchRequest(
        classifier=classifier, patches=sides, method=method, per_axis=per_axis, axis=axis, size=size, theta=theta,
        fill=fill, data=data, n=n, weights=weights, data_dir=data_dir,
    )  # fmt: skip
    found = with_progress(
        lambda progress: certify_against_patches(request, out=out, device=device, progress=progress), silent=json_
    )
    print(json.dumps(found) if json_ else "\n".join([*patch_lines(found), f"record: {found['run']}"]))


@app.command("certify-attack")
def certify_attack_command(
    run: Annotated[Path, typer.Argument(help="Folder that `robustgen certify` or `certify-patches` left.")],
    steps: Annotated[int, typer.Option(help="Of the attack; of patches, in each window.")] = 20,
    draws: Annotated[int, typer.Option(help="Of smoothing: noises an image and step of the attack.")] = 16,
    rel_step: Annotated[float, typer.Option(help="Of smoothing: first step as a fraction of the radius.")] = 0.25,
    samples: Annotated[int, typer.Option(help="Of smoothing: votes that judge an image, with other noise.")] = 1000,
    places: Annotated[int, typer.Option(help="Of patches: windows that are tried in each of the ways in.")] = 4,
    n: Annotated[int | None, typer.Option("--n", "-n", help="The first N examples of the run.")] = None,
    seed: Annotated[int, typer.Option(help="Of all noise.")] = 0,
    batch_size: Annotated[int, typer.Option(help="Of smoothing: noised images sent at once.")] = 1000,
    classifier: Annotated[str | None, typer.Option(help="Only for a classifier that the record cannot name.")] = None,
    weights: Weights = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    json_: Json = False,
) -> None:
    """Attack what was certified, knowing the defence: certified, attacked and clean accuracy side by side.

    A smoothed classifier is attacked inside its certified radii; an attack succeeds where it significantly predicts
    another class than the certified one. A defence against patches is attacked by patches of the certified sides,
    anywhere in each image that it gets right. What was attacked before is not attacked again.

    Examples -

      robustgen certify-attack runs/certify-fmnist-test-1k-fmnist-standard-0123abcd --steps 40

      robustgen certify-attack runs/certify-patches-fmnist-test-1k-fmnist-standard-0123abcd -n 50
    """
    from robustgen.certify.inside_run import InsideRequest, attack_certification, attack_lines
    from robustgen.certify.patch_attack_run import PatchAttackRequest, attack_patch_run, patch_attack_lines
    from robustgen.certify.patches_run import holds_patches
    from robustgen.environment import tune_process

    tune_process()
    if holds_patches(run):
        asked = PatchAttackRequest(
            run=run, places=places, steps=steps, n=n, seed=seed, classifier=classifier, weights=weights,
            data_dir=data_dir,
        )  # fmt: skip
        found = with_progress(lambda progress: attack_patch_run(asked, device=device, progress=progress), silent=json_)
        print(json.dumps(found) if json_ else "\n".join(patch_attack_lines(found)))
        return
    request = InsideRequest(
        run=run, draws=draws, steps=steps, rel_step=rel_step, samples=samples, n=n, seed=seed, classifier=classifier,
        weights=weights, data_dir=data_dir,
    )  # fmt: skip
    found = with_progress(
        lambda progress: attack_certification(request, batch_size=batch_size, device=device, progress=progress),
        silent=json_,
    )
    print(json.dumps(found) if json_ else "\n".join(attack_lines(found)))


@app.command("certify-report")
def certify_report_command(
    logs: Annotated[
        list[Path], typer.Argument(help="Folders of `certify`; or files: idx label predict radius correct time.")
    ],
    radii: Annotated[str, typer.Option(help="With commas.")] = "0,0.25,0.5,0.75,1,1.25,1.5",
    format_: Annotated[str, typer.Option("--format", help="rich, md, csv, latex or json.")] = "rich",
    plot: Annotated[Path | None, typer.Option(help="A picture: certified accuracy against the radius.")] = None,
    pixels: Annotated[int | None, typer.Option(help="Of an image, channels included: Linf radii of files too.")] = None,
) -> None:
    """Certified accuracy at radii with intervals, average certified radius and abstentions, from certification logs.

    Examples -

      robustgen certify-report sigma_0.25.tsv sigma_0.50.tsv --radii 0,0.5,1 --format md

      robustgen certify-report runs/certify-fmnist-test-1k-fmnist-standard-0123abcd sigma_0.25.tsv --pixels 784
    """
    from robustgen.certify.record import gather_logs
    from robustgen.certify.report import draw, measured, parse_radii, render
    from robustgen.fields import WHOLE, check_value, or_none

    check_value("--pixels", pixels, (or_none(WHOLE[0]), WHOLE[1]))
    chosen = parse_radii(radii)
    read = gather_logs(logs, pixels=pixels)
    print(render(measured(read, chosen), format_))
    if plot is not None:
        draw(read, plot)
