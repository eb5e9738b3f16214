"""Timings of robustgen beside its peers, in turn in one process: `python -m robustgen.benchmarks.speed.NAME`."""
