"""Common corruptions: fifteen kinds in five severities, and how a classifier fares on them.

`kinds.py` says what each is; `noise.py`, `blur.py`, `weather.py` and `digital.py` draw them, from the streams of each
example alone. `source.py` makes them data sets by name, `suite.py` measures accuracy on them.
"""
