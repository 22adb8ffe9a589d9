"""Uses models in every way for some seconds and prints, as JSON, what it did and what the process held meanwhile.

    python _soak.py SECONDS BUNDLE BUNDLE ...

The first bundle is open all the time and is asked the same batch again and again; the others come and go.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edgebert import EdgeModel
from edgebert.errors import EdgeBertError
from edgebert.rivals._memory import private_mb
from edgebert.runtime.prepared import prepare_bundle
from edgebert.runtime.rows import MAX_BATCH_TOKENS

LONGEST, MOST_ROWS, SAMPLES = 512, 33, 400
WORDS = ("a", "good", "boring", "film", "with", "funny", "clever", "weak", "plot", "and", "cast", "about", "music")


class Soak:
    """The models, and what was counted."""

    def __init__(self, bundles: list[str]) -> None:
        self.rng = np.random.default_rng(0)
        self.bundles = bundles
        self.model = EdgeModel.from_pretrained(bundles[0], threads=1)
        self.own = (self.model.policy.policy, dict(self.model.policy.knobs))
        self.probe = self.inputs(9, 200)
        self.done: Counter[str] = Counter()
        self.digests: Counter[str] = Counter()
        prepare_bundle(self.model.bundle)

    def inputs(self, rows: int, tokens: int) -> dict[str, Any]:
        lengths = self.rng.integers(1, tokens + 1, rows)
        lengths[0] = tokens
        mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
        ids = self.rng.integers(1, self.model.manifest.encoder.vocabulary_size, (rows, tokens))
        return {"input_ids": ids, "attention_mask": mask}

    def size(self) -> tuple[int, int]:
        tokens = min(int(np.exp(self.rng.uniform(0, np.log(LONGEST + 1)))), LONGEST)
        return int(self.rng.integers(1, min(MOST_ROWS, MAX_BATCH_TOKENS // tokens) + 1)), tokens

    def texts(self, count: int) -> list[str]:
        return [" ".join(self.rng.choice(WORDS, self.rng.integers(1, 60))) for _ in range(count)]

    def check(self) -> None:
        """Asks the one batch under the one policy, and keeps the digest of the answer."""
        self.model.set_policy(self.own[0], **self.own[1])
        got = self.model.forward(**self.probe)
        made = b"".join(np.ascontiguousarray(a).tobytes() for a in (got.logits, got.exit_layer, got.path))
        self.digests[hashlib.sha256(made).hexdigest()] += 1

    def ids(self) -> None:
        self.model.forward(**self.inputs(*self.size()))

    def list_of_texts(self) -> None:
        self.model(self.texts(40), batch_size=int(self.rng.integers(1, MOST_ROWS + 1)))

    def stream(self) -> None:
        answers = self.model.stream(iter(self.texts(60)), window=16)
        for _ in zip(range(int(self.rng.integers(1, 70))), answers, strict=False):  # often left before its end
            pass

    def policy(self) -> None:
        names = [*self.model.manifest.operating_points, *self.model.manifest.policies]
        self.model.set_policy(str(self.rng.choice(names)))

    def threads(self) -> None:
        given = [self.inputs(3, 50) for _ in range(4)]
        asking = [threading.Thread(target=lambda i=i: self.model.forward(**i)) for i in given]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()

    def open_another(self) -> None:
        options: list[dict[str, Any]] = [{}, {"threads": 2}, {"prepare": False}, {"memory_budget_mb": 2.0}]
        path = str(self.rng.choice(self.bundles))
        with EdgeModel.from_pretrained(path, **{"threads": 1, **options[int(self.rng.integers(4))]}) as other:
            other(self.texts(5))

    def wrong(self) -> None:
        """Does something that is refused, in the middle of which things could be left lying about."""
        closed = EdgeModel.from_pretrained(self.bundles[0], threads=1)
        closed.close()
        attempts: list[Callable[[], object]] = [
            lambda: self.model.forward(np.full((2, 5), 10**6)),
            lambda: self.model.forward(np.ones((2, LONGEST + 1), int)),
            lambda: self.model(["good", 7]),  # type: ignore[list-item]
            lambda: list(self.model.stream(["good"] * 40 + [None], window=8)),  # type: ignore[list-item]
            lambda: self.model.set_policy("nothing"),
            lambda: EdgeModel.from_pretrained("no/such/folder"),
            lambda: EdgeModel.from_pretrained(self.bundles[0], memory_budget_mb=1e-6),
            lambda: closed("good"),
        ]
        try:
            attempts[int(self.rng.integers(len(attempts)))]()
        except EdgeBertError:
            return
        raise AssertionError("it was not refused")

    def run(self, seconds: float) -> list[tuple[float, int, int]]:
        """Does one thing after the other; returns private MB, open files and threads, at even times."""
        ways = [self.ids, self.list_of_texts, self.stream, self.policy, self.threads, self.open_another, self.wrong]
        samples = []
        self.model.forward(**self.inputs(MAX_BATCH_TOKENS // LONGEST, LONGEST))
        start = time.monotonic()
        while (passed := time.monotonic() - start) < seconds or len(samples) < 10:
            way = ways[int(self.rng.integers(len(ways)))]
            way()
            self.done[way.__name__] += 1
            if passed >= seconds * len(samples) / SAMPLES:
                self.check()
                files, tasks = (len(list(Path(f"/proc/self/{name}").iterdir())) for name in ("fd", "task"))
                samples.append((private_mb() or 0.0, files, tasks))
        return samples


if __name__ == "__main__":
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    soak = Soak(sys.argv[2:])
    taken = soak.run(float(sys.argv[1]))
    json.dump({"done": soak.done, "digests": soak.digests, "samples": taken}, sys.stdout)
