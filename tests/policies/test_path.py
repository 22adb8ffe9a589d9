import re

import numpy as np
import pytest

from edgebert.decisions import Decision, follow
from edgebert.errors import ConfigError
from edgebert.policies import make_policy


@pytest.mark.parametrize(
    ("layers", "path"),
    [("1,3", [1, 0, 1, 0]), (" 4 , 2,2", [0, 1, 0, 1]), ("3", [0, 0, 1, 0]), (3, [0, 0, 1, 0]), (None, [1, 1, 1, 1])],
)
def test_path_table(layers: str | int | None, path: list[int]) -> None:
    policy = make_policy("path", {"layers": layers}, exit_layers=[1, 2, 3, 4])
    head = Decision("head", 4, {"logits": np.zeros((2, 2))})
    gates = [Decision("gate", layer, {"include": np.array([0.0, 1.0])}) for layer in (1, 2, 3, 4)]

    gated = follow(policy, [*gates, head], 4)
    planned = follow(policy, [Decision("plan", 0, {"include": np.array([[0.0] * 4, [1.0] * 4])}), head], 4)

    assert gated.path.astype(int).tolist() == [path] * 2
    assert planned.path.astype(int).tolist() == [path] * 2


@pytest.mark.parametrize("layers", ["", ",", "0", "5", 5, 0, "1,5", "1;2", "-1", "1,", "all", "1.0"])
def test_path_refused(layers: str | int) -> None:
    message = f'policy path: layers: expected some of 1, 2, 3 with commas between, such as "1,2", got {str(layers)!r}.'
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        make_policy("path", {"layers": layers}, exit_layers=[1, 2, 3])
