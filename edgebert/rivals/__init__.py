"""The sides of a measurement, one per file; each runs only in a child process that `edgebert.bench` starts.

`bundle` is an edgebert bundle; every other file is a rival that `bench --against NAME` times beside it. A file
defines `Side`, which meets the protocol of the same name in `_measure.py`; a rival also says whether it
`TAKES_REFERENCE`: is a static model that may have a checkpoint's weights. Heavy packages are imported when a `Side` is
made, never on import, so that a missing one can be named. `_cold` has how users open what rivals leave on disk.
"""
