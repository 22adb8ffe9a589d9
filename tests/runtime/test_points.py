from pathlib import Path

import pytest

from edgebert.bundle import open_bundle
from edgebert.config import TuneConfig
from edgebert.errors import ConfigError
from edgebert.runtime.points import TUNED, find_point
from edgebert.tune import GUARANTEED
from edgebert.tune.budgets import named_drops


def test_find_point_unknown_lists_each_name_once(dact_bundle: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        find_point(open_bundle(dact_bundle).manifest, "zzz", where="a.bundle")

    assert str(raised.value) == (
        "a.bundle has no point or policy 'zzz'; it has confidence, default, fixed, halting, never."
    )


def test_find_point_that_tuning_makes(dact_bundle: Path) -> None:
    with pytest.raises(ConfigError, match=r"no point or policy 'fast'; it has .*; edgebert tune makes it\.$"):
        find_point(open_bundle(dact_bundle).manifest, "fast")


def test_tuned_are_the_names_that_tune_gives() -> None:
    assert (*named_drops(TuneConfig()), GUARANTEED) == TUNED
