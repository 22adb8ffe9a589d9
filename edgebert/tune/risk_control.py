"""Finite-sample bounds on a risk: pure statistics that know nothing of models.

Learn then test (Angelopoulos et al., 2021, https://arxiv.org/abs/2110.01052), as CALM calibrates its thresholds with it
(Schuster et al., 2022, https://arxiv.org/abs/2207.07061): a p-value by Hoeffding and Bentkus for every setting, and
fixed-sequence testing from the safest on. Conformal consistency with a shared threshold is that of CATs (Schuster et
al., 2021, https://arxiv.org/abs/2104.08803).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebert.errors import require


def hoeffding_bentkus(mean_risk: NDArray[Any] | float, n: int, epsilon: float) -> NDArray[np.float64]:
    """Returns p-values of the hypothesis that the true risk is more than epsilon, float64 of the means' shape.

    p = min(exp(-n KL(min(r, epsilon) || epsilon)), e P(Binomial(n, epsilon) <= ceil(n r))), at most 1.

    >>> float(hoeffding_bentkus(0.0, 100, 0.05).round(6))
    0.005921
    >>> float(hoeffding_bentkus(0.05, 100, 0.05))
    1.0

    Args:
        mean_risk: r, the mean over n texts of a risk of 0 to 1.
        n: How many texts.
        epsilon: The bound, more than 0, less than 1.

    Raises:
        MissingExtraError: SciPy is not installed.
    """
    stats = require("scipy.stats", extra="eval", purpose="a guarantee")
    risk = np.asarray(mean_risk, np.float64)
    low = np.minimum(risk, epsilon)
    with np.errstate(divide="ignore", invalid="ignore"):
        divergence = np.where(low > 0, low * np.log(low / epsilon), 0.0)
        divergence += (1 - low) * np.log((1 - low) / (1 - epsilon))
    # A mean of n numbers may be a rounding error above a whole number of n-ths.
    bentkus = math.e * stats.binom.cdf(np.ceil(np.round(n * risk, 6)), n, epsilon)
    p: NDArray[np.float64] = np.minimum(np.minimum(np.exp(-n * divergence), bentkus), 1.0)
    return p


def fixed_sequence(p_values: Iterable[float], delta: float) -> int:
    """Returns how many hypotheses are rejected, in the order given, until the first that cannot be.

    The order must be settled before the data are seen. The probability that any true hypothesis is rejected is then at
    most delta; later p-values are not asked for.

    >>> fixed_sequence([0.01, 0.04, 0.2, 0.001], 0.05)
    2
    """
    accepted = 0
    for p in p_values:
        if p > delta:
            break
        accepted += 1
    return accepted


def conformal_quantile(scores: NDArray[Any], epsilon: float) -> float:
    """Returns a bound that one more score from the same source exceeds with a probability of at most epsilon.

    The (1 - epsilon) quantile of the scores and +inf, the higher of two neighbours.

    >>> conformal_quantile(np.arange(1.0, 20.0), 0.1)
    19.0
    >>> conformal_quantile(np.arange(1.0, 9.0), 0.1)
    inf

    Args:
        scores: float [texts]; may be none, and may hold +inf.
        epsilon: More than 0, less than 1.
    """
    ordered = np.append(np.sort(np.asarray(scores, np.float64)), np.inf)
    # A rounding error must not move the rank to the next one.
    return float(ordered[math.ceil(round((1 - epsilon) * (len(ordered) - 1), 9))])


def shared_threshold(certainty: NDArray[Any], is_consistent: NDArray[np.bool_], epsilon: float) -> float:
    """Returns the certainty above which texts may stop at any exit (CATs, `shared`).

    Of every text with an exit that answers otherwise than full depth, the largest certainty of such exits counts. The
    last exit has no later one: a text that it answers otherwise counts as +inf. Over draws of calibration texts and of
    one more text, the probability that this one stops at an exit that answers otherwise is at most epsilon, among the
    texts that have such an exit and so among all.

    Args:
        certainty: Of every exit, float [texts, exits].
        is_consistent: Whether it answers as full depth does, bool [texts, exits].
        epsilon: More than 0, less than 1.
    """
    counted = np.where(is_consistent, -np.inf, certainty)
    counted[:, -1] = np.where(is_consistent[:, -1], -np.inf, np.inf)
    return conformal_quantile(counted[~is_consistent.all(axis=1)].max(axis=1, initial=-np.inf), epsilon)
