"""What `eval --json` and `bench --json` print, by hand and with everything that a report can show."""

from typing import Any

_HOST = {
    "cpu": "a processor",
    "threads": 2,
    "os": "Linux",
    "python": "3.11",
    "load_average": 0.1,
    "versions": {"a": "1"},
}
_SHARED = {"method": "fastbert", "policy": "default", "knobs": {"threshold": 0.5}, "precision": "fp32", "threads": 1}


def results() -> list[dict[str, Any]]:
    """Returns one result of each kind."""
    evaluated = {
        **_SHARED,
        "bundle": "fast.bundle",
        "rule": "entropy",
        "n": 40,
        "metric_name": "accuracy",
        "metric": 0.85,
        "ci_low": 0.8,
        "ci_high": 0.9,
        "layers": 3,
        "mean_layers": 2.0,
        "flops_ratio": 0.5,
        "gmacs": 0.5,
        "exit_histogram": {"right": [10, 14, 10], "wrong": [1, 2, 3]},
        "size_mb": 90.0,
        "private_mb": 30.0,
        "mean_ms": 4.0,
        "p50_ms": 4.0,
        "p90_ms": 4.5,
        "p99_ms": 5.0,
        "latency_quantiles_ms": [3.0 + number / 50 for number in range(101)],
        "texts_per_s": 250.0,
        "maps": {
            "paths": ["110", "111"],
            "keep_rates": {"heads": [[0.5, 1.0], [0.5, 0.5], [1.0, 0.0]]},
            "tokens": [[["[CLS]", 3], ["good", 2]], [["[CLS]", 3]]],
        },
    }
    static = {
        **evaluated,
        "bundle": "plain.bundle",
        "method": "plain",
        "rule": "never",
        "flops_ratio": 1.0,
        "metric": 0.9,
    }
    timed = {
        **_SHARED,
        "bundle": "fast.bundle",
        "mean_layers": 2.0,
        "batch": 1,
        "seq_len": 16,
        "scenario": "single-stream",
        "mean_ms": 4.0,
        "min_ms": 3.0,
        "max_ms": 5.0,
        "p50_ms": 4.0,
        "p90_ms": 4.5,
        "p99_ms": 5.0,
        "latency_quantiles_ms": [3.0 + number / 50 for number in range(101)],
        "texts_per_s": 250.0,
        "first_ms": 9.0,
        "private_mb": 30.0,
        "steps_ms": {"embed": 0.5, "layers": 3.0, "exits": 0.2, "Python": 0.3},
    }
    rival = {**timed, "bundle": "plain.bundle"}
    ratio = {
        "bundle": "fast.bundle",
        "against": "plain.bundle",
        "threads": 1,
        "batch": 1,
        "against_batch": 1,
        "seq_len": 16,
        "scenario": "single-stream",
        "ratio": 0.5,
        "ci_low": 0.4,
        "ci_high": 0.6,
        "pairs": [0.5, 0.4, 0.6],
        "winner": "fast.bundle",
    }
    return [
        {"schema": "edgebert.eval/1", "host": _HOST, "data": ["test.tsv"], "rows": [evaluated, static]},
        {
            "schema": "edgebert.bench/1",
            "host": _HOST,
            "rows": [timed, rival],
            "ratios": [ratio],
        },
    ]
