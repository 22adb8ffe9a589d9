import pytest

from edgebert.errors import ConfigError
from edgebert.methods._tasks import check_task, policies_for


@pytest.mark.parametrize(
    ("method", "task"), [("plain", "classification"), ("plain", "regression"), ("dact_bert", "classification")]
)
def test_check_task_that_the_method_does(method: str, task: str) -> None:
    check_task(method, task)


def test_check_task_refused() -> None:
    with pytest.raises(ConfigError) as raised:
        check_task("dact_bert", "regression")

    reason, _, able = str(raised.value).partition("; use ")
    assert reason == (
        "dact_bert does not do regression: its halting bound compares label probabilities, which a single value does "
        "not have"
    )
    assert "plain" in able.rstrip(".").split(" or ")
    assert "dact_bert" not in able


@pytest.mark.parametrize(
    ("method", "task", "message"),
    [
        ("dact", "classification", "unknown method 'dact'. Did you mean 'dact_bert'?"),
        ("plain", "regresion", "unknown task 'regresion'. Did you mean 'regression'?"),
    ],
)
def test_check_task_unknown(method: str, task: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        check_task(method, task)

    assert str(raised.value) == message


def test_policies_for_a_task_leave_out_what_reads_probabilities() -> None:
    assert policies_for("pabee", "classification") == ("patience", "confidence", "fixed", "never")
    assert policies_for("pabee", "regression") == ("patience", "fixed", "never")
