import os
import subprocess
import sys
from pathlib import Path

import pytest

RUN = """
import multiprocessing, sys
from edgebert import EdgeModel
with EdgeModel.from_pretrained(sys.argv[1], provider=sys.argv[2], threads=1) as model:
    print(model("a good film").label, multiprocessing.active_children())
"""


@pytest.mark.parametrize("provider", ["cpu", "openvino"])
def test_running_a_model_leaves_no_identifier_and_starts_no_reporter(
    dact_bundle: Path, tmp_path: Path, provider: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "ORT_DISABLE_TELEMETRY")}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}

    run = subprocess.run(
        [sys.executable, "-c", RUN, str(dact_bundle), provider],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.split(maxsplit=1)[1] == "[]\n"
    assert list(tmp_path.rglob("*")) == []
