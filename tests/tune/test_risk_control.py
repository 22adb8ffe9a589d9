import math

import numpy as np
import pytest
from scipy import stats

from edgebert.tune.risk_control import conformal_quantile, fixed_sequence, hoeffding_bentkus, shared_threshold

DRAWS = 2000


@pytest.mark.parametrize("n", [7, 60])
@pytest.mark.parametrize("epsilon", [0.01, 0.1, 0.5])
def test_p_value_term_by_term(n: int, epsilon: float) -> None:
    for count in range(n + 1):
        risk = count / n
        low = min(risk, epsilon)
        divergence = stats.entropy([low, 1 - low], [epsilon, 1 - epsilon])
        tail = sum(math.comb(n, k) * epsilon**k * (1 - epsilon) ** (n - k) for k in range(count + 1))

        p = hoeffding_bentkus(risk, n, epsilon)

        assert p == pytest.approx(min(math.exp(-n * divergence), math.e * tail, 1.0), rel=1e-6)


def test_p_value_of_a_mean_between_counts_takes_the_next_count() -> None:
    p = hoeffding_bentkus(np.array([0.031, 0.04]), 100, 0.1)

    assert p[0] <= p[1] <= math.e * stats.binom.cdf(4, 100, 0.1)


def test_p_values_are_valid_at_the_border() -> None:
    """Of a true risk of exactly epsilon, P(p <= u) <= u for every u, summed exactly over all counts."""
    for n, epsilon in ((40, 0.05), (200, 0.1), (1000, 0.02)):
        counts = np.arange(n + 1)
        p, weight = hoeffding_bentkus(counts / n, n, epsilon), stats.binom.pmf(counts, n, epsilon)
        for u in (0.01, 0.05, 0.1, 0.3, 0.9):
            assert weight[p <= u].sum() <= u


def test_fixed_sequence_asks_for_no_more_than_it_needs() -> None:
    asked = []

    def values() -> object:
        for p in (0.01, 0.1, 0.0):
            asked.append(p)
            yield p

    assert fixed_sequence(values(), 0.05) == 1  # type: ignore[arg-type]
    assert asked == [0.01, 0.1]
    assert fixed_sequence([], 0.05) == 0


@pytest.mark.parametrize("epsilon", [0.05, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("n", [0, 1, 8, 9, 19, 20, 99, 100])
def test_conformal_quantile_is_numpys(n: int, epsilon: float) -> None:
    scores = np.random.default_rng(n).normal(size=n)

    with np.errstate(invalid="ignore"):
        expected = np.quantile(np.append(scores, np.inf), round(1 - epsilon, 12), method="higher")

    assert conformal_quantile(scores, epsilon) == expected


def test_shared_threshold_by_hand() -> None:
    certainty = np.array([[0.6, 0.9, 0.99], [0.8, 0.7, 0.99], [0.5, 0.95, 0.99], [0.9, 0.9, 0.9]])
    is_consistent = np.array([[0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 1, 1]], bool)

    # The largest wrong certainties are 0.6, 0.8 and 0.95; the last text has none.
    assert shared_threshold(certainty, is_consistent, 0.67) == 0.8
    assert shared_threshold(certainty, is_consistent, 0.4) == 0.95
    assert shared_threshold(certainty, is_consistent, 0.3) == math.inf
    assert shared_threshold(certainty, np.ones((4, 3), bool), 0.3) == math.inf


def test_shared_threshold_counts_what_the_last_exit_gets_wrong() -> None:
    certainty, is_consistent = np.full((4, 2), 0.9), np.ones((4, 2), bool)
    is_consistent[:, 0], is_consistent[0, 1] = False, False

    assert shared_threshold(certainty, is_consistent, 0.5) == 0.9
    assert shared_threshold(certainty, is_consistent, 0.4) == math.inf


# A text's loss at a setting of risk R is 1 where a uniform number is below R, so that settings share their errors as
# the thresholds of a model do. Two populations: one creeps over the bound, one jumps to just above it.
EPSILON, DELTA, TEXTS = 0.1, 0.2, 400
CREEPING = np.linspace(0.02, 0.2, 91)
JUMPING = np.array([0.05, 0.1001, 0.15])


def _chosen_risks(risks: np.ndarray, delta: float | None) -> np.ndarray:
    """The true risk of what each simulated calibration chooses; by the plain mean where there is no delta."""
    rng = np.random.default_rng(1)
    means = np.stack(
        [np.searchsorted(np.sort(rng.random(TEXTS)), risks, side="left") / TEXTS for _ in range(DRAWS)]
    )  # [draws, settings]
    if delta is None:
        accepted = [int((row <= EPSILON).cumprod().sum()) for row in means]
    else:
        p_values = hoeffding_bentkus(means, TEXTS, EPSILON)
        accepted = [fixed_sequence(row, delta) for row in p_values]
    return np.array([risks[count - 1] if count else 0.0 for count in accepted])


@pytest.mark.parametrize("risks", [CREEPING, JUMPING], ids=["creeping", "jumping"])
def test_learn_then_test_keeps_its_promise(risks: np.ndarray) -> None:
    chosen = _chosen_risks(risks, DELTA)

    assert (chosen > EPSILON).mean() <= DELTA
    # It is no empty promise: something is chosen nearly always, and violations do occur.
    assert (chosen > 0).mean() > 0.95
    assert (chosen > EPSILON).any()


@pytest.mark.parametrize("risks", [CREEPING, JUMPING], ids=["creeping", "jumping"])
def test_the_plain_mean_breaks_that_promise(risks: np.ndarray) -> None:
    assert (_chosen_risks(risks, None) > EPSILON).mean() > 2 * DELTA


def _population(rng: np.random.Generator, texts: int) -> tuple[np.ndarray, np.ndarray]:
    """Certainties and consistency of three exits; surer exits are right more often, and the last one always."""
    certainty = rng.random((texts, 3))
    is_consistent = rng.random((texts, 3)) < 0.5 + 0.4 * certainty
    is_consistent[:, -1] = True
    return certainty, is_consistent


def _disagrees(certainty: np.ndarray, is_consistent: np.ndarray, threshold: float) -> np.ndarray:
    stops = certainty > threshold
    stops[:, -1] = True
    return ~is_consistent[np.arange(len(stops)), stops.argmax(axis=1)]


def test_conformal_consistency_keeps_its_promise_on_average() -> None:
    """The promise at its tightest: a text counts where any exit above the threshold is wrong, not the first alone."""
    rng, epsilon, texts = np.random.default_rng(2), 0.1, 40
    many, right = _population(rng, 100_000)
    wrong = np.where(right, -np.inf, many)[~right.all(axis=1)].max(axis=1)
    exceeded, naive, disagreement = [], [], []
    for _ in range(DRAWS):
        certainty, is_consistent = _population(rng, texts)
        threshold = shared_threshold(certainty, is_consistent, epsilon)
        own = np.where(is_consistent, -np.inf, certainty)[~is_consistent.all(axis=1)].max(axis=1)
        exceeded.append((wrong > threshold).mean())
        naive.append((wrong > np.quantile(own, 1 - epsilon, method="lower")).mean())
        disagreement.append(_disagrees(many[:2000], right[:2000], threshold).mean())

    assert np.mean(exceeded) <= epsilon
    assert np.mean(exceeded) > 0.5 * epsilon
    assert np.mean(disagreement) <= epsilon
    assert np.mean(naive) > epsilon
