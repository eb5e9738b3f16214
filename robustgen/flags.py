"""What a flag means and what to do about it: what docs, tables and pages print. torch is not needed to read it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["FLAGS", "Flag"]


@dataclass(frozen=True, slots=True)
class Flag:
    """One entry of the manual: when it is raised, why that matters, what to do."""

    raised_if: str
    why: str
    what_to_do: str
    escalates: bool = True


FLAGS: dict[str, Flag] = {
    "randomised": Flag(
        "the same images get other logits when they are sent again",
        "a gradient through one draw is noise, and one lucky miss is no break",
        "attack with --plan rand (expectation over transformation), and score over fresh draws",
    ),
    "probabilities": Flag(
        "all outputs lie in [0, 1] and sum to 1",
        "losses on probabilities saturate, so attacks look weak",
        "return logits: drop the softmax at the end of the classifier",
    ),
    "zero-gradient": Flag(
        "the gradient of the cross-entropy is exactly zero for more than half of the images",
        "attacks by gradient do not move; what they leave standing is not robust",
        "look for rounding, argmax, saturated functions or huge logits; attack a smooth stand-in (BPDA)",
    ),
    "gradient-mismatch": Flag(
        "the gradient and finite differences of the margin disagree",
        "the classifier jumps where its gradient says that it is smooth; attacks climb the wrong hill",
        "replace the jumping layer by a smooth one in the backward pass (BPDA, Athalye et al. 2018)",
    ),
    "eps-sweep": Flag(
        "a white-box attack that may change the image at will leaves some images standing",
        "nothing is robust to that, so the attack fails for another reason: masked gradients",
        "treat the robust accuracy as an upper bound that is far too high; use an adaptive attack",
    ),
    "black-box-wins": Flag(
        "the gradient-free attack breaks images that all white-box attacks left standing",
        "with honest gradients white-box attacks find nearly all that random search finds",
        "raise the queries of Square; look for masked gradients",
    ),
    "range": Flag(
        "the classifier is right more often on rescaled images (x 255, or shifted to [-1, 1])",
        "it expects another input range or a normalisation that is missing",
        "put the scaling into the classifier: robustgen hands it images in [0, 1]",
    ),
    "dynamic": Flag(
        "the forward pass itself computes gradients",
        "a defence that optimises at test time may hide its gradients or adapt to the attack",
        "attack through the inner optimisation, or transfer from the static classifier",
    ),
    "gradient-weaker-than-full": Flag(
        "no attack had the exact gradient through the purifier",
        "what BPDA, a surrogate or no gradient leave standing often falls to the exact gradient",
        "attack with --plan adaptive, or with --gradient full",
        escalates=False,
    ),
    "single-draw": Flag(
        "a purifier with noise was attacked with gradients of one draw",
        "such a gradient points where one draw fails, not where most of them do",
        "raise --eot to 10 or more, or attack with --plan adaptive",
        escalates=False,
    ),
    "transfer-beats-white-box": Flag(
        "attacks made on other classifiers break more images than the same attacks on the classifier itself",
        "with honest gradients its own lead furthest, so what comes from elsewhere should be the weaker attack",
        "look for masked gradients, attack a smooth stand-in (BPDA), and take the lower of the two figures",
        escalates=False,
    ),
    "not-finite": Flag(
        "the classifier returned NaN or infinity on some images",
        "such an image is a failure of the classifier, and no attack is credited with it",
        "look at the error column of examples.jsonl",
        escalates=False,
    ),
}
