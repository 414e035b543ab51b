"""Sets that mix the conditions otherwise than the real one are compared by condition only."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from blobs import CONDITIONS, make_inputs, synthetic_set

from cxr_lightning.evaluation.fidelity import fidelity
from cxr_lightning.evaluation.inputs import EvaluationInputs
from cxr_lightning.evaluation.records import OVERALL
from cxr_lightning.metrics.extractors import pixel_extractor


def _inputs(work: Path, shares: tuple[int, ...]) -> EvaluationInputs:
    """Synthetic images, so many of each condition."""
    whole = synthetic_set()
    names = np.asarray(whole.requested)
    wanted = zip(CONDITIONS, shares, strict=True)
    rows = np.concatenate([np.flatnonzero(names == name)[:n] for name, n in wanted])
    part = replace(
        whole,
        images=whole.images[rows],
        sha256=f"{whole.sha256}-{shares}",
        table=whole.table.iloc[rows].reset_index(drop=True),
        requested=names[rows],
    )
    inputs = make_inputs(work, part)
    return replace(inputs, extractors=[pixel_extractor(inputs.real.size)])


def test_another_mix_is_not_compared_as_a_whole(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path, (*[40] * (len(CONDITIONS) - 1), 4))
    assert inputs.other_mix.startswith("conditions are mixed otherwise than in the real images (")
    records = fidelity(inputs).records
    overall = [r for r in records if r.condition == OVERALL]
    assert overall
    assert all(r.passed is None and inputs.other_mix in str(r.warning) for r in overall)
    conditions = [r for r in records if r.metric == "fid_equal_n"]
    assert len(conditions) == len(CONDITIONS)
    assert all(r.passed is not None for r in conditions)
    assert not any(inputs.other_mix in str(r.warning) for r in conditions)


def test_a_condition_of_few_images_does_not_take_the_others_comparison(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path, (*[40] * (len(CONDITIONS) - 1), 3))
    result = fidelity(inputs)
    found = {r.condition for r in result.records if r.metric == "fid_equal_n"}
    assert found == set(CONDITIONS[:-1])
    missing = {s.metric: s.reason for s in result.skipped if s.condition == CONDITIONS[-1]}
    assert set(missing) == {
        f"{name} by pixels" for name in ("precision", "fid_infinity", "fid_equal_n")
    }
    assert "3 synthetic images; two halves" in missing["fid_equal_n by pixels"]


def test_the_mix_of_the_real_set_is_compared(tmp_path: Path) -> None:
    inputs = _inputs(tmp_path, (40,) * len(CONDITIONS))
    counts = [len(inputs.real_rows(condition)) for condition in inputs.conditions]
    shares = tuple(round(40 * count / max(counts)) for count in counts)
    inputs = _inputs(tmp_path, shares)
    assert inputs.other_mix == ""
    overall = [r for r in fidelity(inputs).records if (r.metric, r.condition) == ("fid", OVERALL)]
    assert [r.passed is not None for r in overall] == [True]
