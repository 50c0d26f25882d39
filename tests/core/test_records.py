import json
import math

import pytest

from isobit.core.errors import ArtifactError
from isobit.core.files import write_json
from isobit.core.records import LayerRecord, TensorRecord, from_json, to_json


def layer(sqnr: float | None) -> LayerRecord:
    tensor = TensorRecord(
        name="w", role="weight", scheme="s8", bits=8, quant_min=-128, quant_max=127,
        clip_low=-1.0, clip_high=1.0, scale=(0.5, math.inf), zero_point=(0, 0),
    )  # fmt: skip
    return LayerRecord(name="conv", op="conv", sqnr_db=sqnr, tensors=(tensor,))


@pytest.mark.parametrize("sqnr", [None, 3.5, math.inf, -math.inf])
def test_a_record_survives_strict_json(sqnr: float | None, tmp_path) -> None:
    write_json(tmp_path / "record.json", to_json(layer(sqnr)))  # refuses NaN and Inf as numbers
    text = (tmp_path / "record.json").read_text()
    assert from_json(LayerRecord, json.loads(text)) == layer(sqnr)


def test_nan_survives() -> None:
    found = from_json(LayerRecord, to_json(layer(math.nan)))
    assert found.sqnr_db is not None
    assert math.isnan(found.sqnr_db)


def test_a_text_is_no_number() -> None:
    with pytest.raises(ArtifactError, match="expected a number in a record, got 'high'"):
        from_json(LayerRecord, {"name": "conv", "op": "conv", "sqnr_db": "high"})
    with pytest.raises(ArtifactError, match="no key 'loudness'"):
        from_json(LayerRecord, {"name": "conv", "op": "conv", "loudness": 1.0})
