"""What the marks of a board mean: those that boards raise themselves, and the health flags of our own runs."""

from __future__ import annotations

from robustgen.flags import FLAGS, Flag

__all__ = ["BOARD_FLAGS", "meaning"]

BOARD_FLAGS: dict[str, Flag] = {
    "unreliable": Flag(
        "RobustBench says that AutoAttack is potentially unreliable on this entry",
        "the attack's own checks doubt it: gradients may be masked, or black-box search beat the white-box attacks",
        "read the best known figure, or attack it in a way made for its defence",
        escalates=False,
    ),
    "broken-further": Flag(
        "a later attack left less than AutoAttack or the run itself did; the board sorts by that lower figure",
        "attacks give an upper bound, and here the bound is known not to be tight",
        "compare by the best known figure; expect entries built alike to fall too",
        escalates=False,
    ),
    "overclaim": Flag(
        "the claim is more than one point above what was measured; of our own entries, also more than chance explains",
        "authors often attack with less than AutoAttack, or on fewer images",
        "quote the measured figure; see the wall of claims",
        escalates=False,
    ),
    "other-eps": Flag(
        "the board's source gives another eps for this entry than for the board, such as 0.031 for 8/255",
        "0.031 is 1.2 % less than 8/255, so the entry faced a slightly weaker attack",
        "read differences of a few tenths of a point with care",
        escalates=False,
    ),
}


def meaning(flag: str) -> Flag | None:
    """The manual's entry of a flag of either kind; None for one of another version."""
    return BOARD_FLAGS.get(flag) or FLAGS.get(flag)
