"""uncompacted: the same bundle, but finished rows stay in their batch until the last one is finished."""

from __future__ import annotations

import msgspec

from edgebert.rivals import bundle
from edgebert.rivals._protocol import Spec

TAKES_REFERENCE = False


class Side(bundle.Side):
    """A loaded bundle that never compacts."""

    def __init__(self, spec: Spec) -> None:
        super().__init__(msgspec.structs.replace(spec, compact=False))
