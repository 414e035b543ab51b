"""The stop at the Goodhart point, and which product it leaves."""

from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from lightning import Trainer

from cxr_lightning.callbacks.export import Export
from cxr_lightning.callbacks.generation import GenerationMetrics
from cxr_lightning.callbacks.goodhart import GoodhartStop
from cxr_lightning.errors import UserError
from cxr_lightning.stages.finetune import Finetune

KEYS = ("finetune/valid/rrs", "finetune/valid/held_out_rrs")


def watched(patience: int | None, start: tuple[float, float], watches: bool = True):
    """A stop that is set up beside an export, with the scores before the first step."""
    metrics = Mock(spec=GenerationMetrics, measured=True)
    metrics.watches_held_out.return_value = watches
    metrics.start = dict(zip(("rrs", "held_out_rrs"), start, strict=True))
    export = Export()
    trainer = Mock(spec=Trainer, sanity_checking=False, should_stop=False, global_step=0)
    trainer.callbacks = [metrics, export]
    stage = Mock(spec=Finetune, loss_encoder="ab" * 32)
    stage.name = "finetune"
    stop = GoodhartStop(patience)
    stop.setup(trainer, stage, "fit")
    stop.on_train_start(trainer, stage)
    return SimpleNamespace(stop=stop, metrics=metrics, export=export, trainer=trainer, stage=stage)


def validate(run: SimpleNamespace, own: float, held_out: float) -> bool:
    """One validation with these scores; whether training stops."""
    run.trainer.global_step += 10
    run.trainer.callback_metrics = dict(zip(KEYS, map(torch.tensor, (own, held_out)), strict=True))
    run.stop.on_validation_end(run.trainer, run.stage)
    return run.trainer.should_stop


@pytest.mark.parametrize(
    ("scores", "stops"),
    [
        # the held-out score stands still while the own one falls
        ([(0.3, 0.4), (0.2, 0.4), (0.1, 0.5)], [False, False, True]),
        # it never improves on the start
        ([(0.39, 0.6), (0.38, 0.6)], [False, True]),
        # both fall
        ([(0.3, 0.4), (0.2, 0.3), (0.1, 0.2), (0.05, 0.1)], [False] * 4),
        # the own one does not fall either: no Goodhart point
        ([(0.3, 0.4), (0.3, 0.5), (0.35, 0.5), (0.3, 0.5)], [False] * 4),
        # an improvement in between begins anew
        ([(0.3, 0.4), (0.2, 0.45), (0.2, 0.35), (0.1, 0.36), (0.1, 0.36)], [False] * 4 + [True]),
    ],
)
def test_stops_where_the_held_out_score_rests_and_the_own_one_falls(scores, stops):
    run = watched(2, start=(0.4, 0.5))
    assert [validate(run, *pair) for pair in scores] == stops
    assert run.export.monitor == KEYS[1]


def test_validations_that_measure_nothing_do_not_count():
    run = watched(1, start=(0.4, 0.5))
    run.metrics.measured = False
    assert not validate(run, 0.1, 0.9)
    run.metrics.measured = True
    assert validate(run, 0.1, 0.9)


def test_waiting_survives_a_resume():
    first = watched(2, start=(0.4, 0.5))
    validate(first, 0.3, 0.6)
    second = watched(2, start=(9.0, 9.0))
    second.stop.load_state_dict(first.stop.state_dict())
    assert validate(second, 0.2, 0.6)


def test_what_was_stopped_stays_so():
    first = watched(1, start=(0.4, 0.5))
    assert validate(first, 0.3, 0.6)
    second = watched(1, start=(9.0, 9.0))
    second.stop.load_state_dict(first.stop.state_dict())
    second.stop.on_train_start(second.trainer, second.stage)
    assert second.trainer.should_stop
    without = watched(None, start=(9.0, 9.0))
    without.stop.load_state_dict(first.stop.state_dict())
    without.stop.on_train_start(without.trainer, without.stage)
    assert not without.trainer.should_stop


@pytest.mark.parametrize(("patience", "watches"), [(None, True), (2, False)])
def test_without_held_out_encoder_or_patience_there_is_no_stop(patience, watches, caplog):
    with caplog.at_level("INFO"):
        run = watched(patience, start=(0.4, 0.5), watches=watches)
    assert not any(validate(run, 0.4 - step / 10, 0.5 + step / 10) for step in range(1, 4))
    assert run.export.monitor is None
    assert ("--generation.encoder_held_out" in caplog.text) is not watches


def test_a_patience_below_one_is_refused():
    with pytest.raises(UserError, match=r"^goodhart\.patience: 0 .* use 1 or more, or null"):
        GoodhartStop(0)
