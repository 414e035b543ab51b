"""The line of the headline on privacy."""

from collections.abc import Sequence

from cxr_lightning.evaluation.records import OVERALL
from cxr_lightning.report.read import Evaluation, Measurement
from cxr_lightning.report.verdicts import AxisLine, Verdict
from cxr_lightning.report.words import percent

OTHER_DATA = Verdict("none", "not known: the generator was trained on other images than these")
UNKNOWN_DATA = Verdict(
    "none", "no sign of copying these images; whether the generator was trained on them is unknown"
)


def privacy_line(evaluation: Evaluation) -> AxisLine | None:
    """The line; None where no rate of copies was measured."""
    rates = list(evaluation.select("copy_rate", "copy_rate_relative", "reid_rate"))
    rates = [r for r in rates if r.condition == OVERALL] or rates
    if not rates:
        return None

    def excess(record: Measurement) -> float:
        return (record.value or 0.0) - (record.real_floor or 0.0)

    worst = max(rates, key=lambda r: (r.passed is False, excess(r)))
    allowed = worst.details.get("false_positive_rate", worst.real_floor)
    allowed = float(allowed) if isinstance(allowed, int | float) else None
    patients = list(evaluation.select("copied_patients"))
    spaces = len({r.source for r in rates})
    note = "of the images flagged as copies" + (f", worst of {spaces} spaces" if spaces > 1 else "")
    if patients:
        note += f"; {max(r.value or 0.0 for r in patients):,.0f} training patients in flagged pairs"
    return AxisLine(
        "Privacy",
        _privacy_words(evaluation, rates, worst, allowed),
        percent(worst.value or 0.0),
        note,
        percent(allowed) if allowed is not None else "",
        "of real images of other patients" if allowed is not None else "",
    )


def _privacy_words(
    evaluation: Evaluation, rates: Sequence[Measurement], worst: Measurement, allowed: float | None
) -> Verdict:
    """The worst of what is said: single copies, rates of copies, the set as a whole."""
    found = [r for r in evaluation.select("exact_copies", "nearer_than_any") if r.passed is False]
    verdict = _found_words(found) or _copy_words(worst, allowed)
    if verdict.symbol == "worse":
        return verdict
    copies = verdict.text if any(r.value for r in rates) else "no image flagged"
    verdict = _nearer_words(evaluation, copies) or verdict
    if verdict.symbol == "worse":
        return verdict
    trained_on_it = evaluation.look_up("real", "is_training_data")
    if trained_on_it is False:
        return OTHER_DATA
    if verdict.symbol == "ok" and trained_on_it is None:
        return UNKNOWN_DATA
    return verdict


def _found_words(found: Sequence[Measurement]) -> Verdict | None:
    """What is said where single images are too near to a training image for chance."""
    for record in found:
        count = f"{record.value:,.0f}"
        if record.metric == "exact_copies":
            return Verdict("worse", f"copies: {count} of the images equal a training image")
        return Verdict(
            "worse", f"copies: {count} images lie nearer to a training image than any held-out one"
        )
    return None


def _nearer_words(evaluation: Evaluation, copies: str) -> Verdict | None:
    """What is said, after what is said of copies, where all images lie near the training images."""
    failed = {
        r.metric
        for r in evaluation.select("closer_to_train", "data_copying", "authenticity")
        if r.passed is False
    }
    if "closer_to_train" in failed:
        return Verdict("worse", "nearer to training images than to held-out ones, beyond chance")
    if failed:
        return Verdict(
            "none", f"{copies}; nearer to training images than real ones are, by blur maybe"
        )
    return None


def _copy_words(worst: Measurement, allowed: float | None) -> Verdict:
    chance = "" if allowed is None else f"{percent(allowed)} false positives"
    beyond = f" beyond {chance}" if chance else ""
    if worst.passed is None:
        return Verdict("none", "no comparison: too few held-out patients")
    if worst.passed and allowed is not None and (worst.value or 0.0) > allowed:
        return Verdict("none", f"no clear sign of copying: more than {chance}, by chance maybe")
    if worst.passed:
        return Verdict("ok", f"no sign of copying{beyond}")
    return Verdict("worse", f"copies of training images{beyond}")
