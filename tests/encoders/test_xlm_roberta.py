from collections.abc import Callable

from edgebert.encoders import roberta, xlm_roberta
from edgebert.encoders._blocks import EncoderConfig
from edgebert.encoders._checkpoint import build_encoder


def test_settings_are_robertas_under_a_name_with_a_hyphen(family_config: Callable[..., EncoderConfig]) -> None:
    ours, theirs = family_config("xlm_roberta"), family_config("roberta")

    settings = xlm_roberta.write_config(ours)

    assert settings == {**roberta.write_config(theirs), "model_type": "xlm-roberta"}
    assert build_encoder(settings, where="x").config == ours
