"""Stage 3 on a tiny data module: what moves, when, and what it says."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from lightning import Callback, Trainer
from processes import on_ranks
from torch.utils.data import DataLoader

from cxr_lightning.data.augment import PRESETS, Augmentation
from cxr_lightning.data.categories import category_weights
from cxr_lightning.data.datamodule import CheXpertDataModule
from cxr_lightning.data.prepared import PreparedDataset
from cxr_lightning.data.transforms import to_image, to_model
from cxr_lightning.errors import UserError
from cxr_lightning.files import sha256_file
from cxr_lightning.losses.contrastive import info_nce_logits
from cxr_lightning.metrics.collapse import pair_distance, same_category, spread
from cxr_lightning.networks.encoder import Encoder
from cxr_lightning.stages.moco import Clustering, MoCo
from cxr_lightning.stages.moco_linear import open_encoders
from cxr_lightning.stages.moco_monitors import Seen
from cxr_lightning.types import Batch, Condition

TRAIN, VALID, BATCH, SIZE = 32, 12, 8, 16

# a few steps leave the tiny encoder untrained, as the alarm says
pytestmark = pytest.mark.filterwarnings("ignore:At step .* not trained")


def radiographs(count: int, seed: int) -> Batch:
    """Noise images, half of them normal and bright on the left, half with edema on the right."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(count, 1, SIZE, SIZE, generator=generator) * 2 - 1
    abnormal = torch.arange(count) % 2
    image[abnormal == 1, :, :, SIZE // 2 :] += 0.5
    value = torch.zeros(count, 17)
    value[:, 0], value[:, 5] = 1.0 - abnormal, abnormal.float()
    known = torch.zeros(count, 17, dtype=torch.bool)
    known[:, [0, 5]] = True
    return Batch(to_image(image), Condition.of(value, known), torch.arange(count))


class TinyData(CheXpertDataModule):
    """32 training and 12 validation images in batches of 8."""

    def __init__(self) -> None:
        super().__init__(Path(), batch_size=BATCH, image_size=SIZE)

    def setup(self, stage: str | None = None) -> None:
        whole = radiographs(TRAIN, seed=0)
        self.rows = {
            "train": np.arange(TRAIN),
            "valid": np.arange(VALID),
            "test": np.arange(0),
        }
        self.condition = whole.condition
        table = pd.DataFrame({"Path": [f"{i}.png" for i in range(TRAIN)]})
        table["patient"] = [f"patient{i // 4}" for i in range(TRAIN)]
        table["study"] = [f"study{i % 4 // 2}" for i in range(TRAIN)]
        table["ward"] = np.where(np.arange(TRAIN) % 3 == 0, "east", "west")
        images = whole.image[:, 0].numpy()
        self.prepared = PreparedDataset(Path(), {"sha256": "ab", "size": SIZE}, images, table)

    def state_dict(self) -> dict[str, Any]:
        return {}  # there are no files

    def _batches(self, count: int, seed: int) -> DataLoader[Any]:
        whole = radiographs(count, seed)
        starts = range(0, count, BATCH)
        parts = [slice(start, start + BATCH) for start in starts]
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        shards = [torch.arange(count)[p].tensor_split(world)[rank] for p in parts]
        batches: Any = [
            Batch(whole.image[i], whole.condition.rows(i), whole.index[i]) for i in shards
        ]
        return DataLoader(batches, batch_size=None)

    def train_dataloader(self) -> DataLoader[Any]:
        return self._batches(TRAIN, seed=0)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._batches(VALID, seed=1)


def stage(**changes: Any) -> MoCo:
    torch.manual_seed(0)
    clustering = {"scheme": "binary", "warmup_steps": 0, "ramp_steps": 0}
    clustering |= changes.pop("clustering", {})
    settings = {"image_size": SIZE, "width": 4, "dim": 8, "backbone": "small", "group_size": 4}
    return MoCo(**{**settings, "clustering": Clustering(**clustering), **changes})  # type: ignore[arg-type]


def trainer(folder: Path, **changes: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    settings = {"accelerator": "cpu", "devices": 1, "max_steps": 4, "enable_checkpointing": False}
    return Trainer(default_root_dir=folder, **{**quiet, **settings, **changes})


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_fit_trains_the_encoder_and_logs(tmp_path: Path) -> None:
    model = stage()
    before = state(model.encoder)
    run = trainer(tmp_path)
    run.fit(model, datamodule=TinyData())
    assert run.global_step == 4
    assert not same(before, state(model.encoder))
    train = {"loss", "info_nce", "clustering", "clustering_weight", "accuracy", "queue_age"}
    valid = {"loss", "info_nce", "clustering", "effective_rank", "alignment", "uniformity"}
    valid |= {"view_distance", "same_category_distance", "random_distance", "retrieval"}
    expected = {f"moco/train/{n}" for n in train} | {f"moco/valid/{n}" for n in valid}
    assert expected <= set(run.callback_metrics)
    for name in ("probe_auroc", "probe_auroc_edema", "knn_auroc", "knn_auroc_no_finding"):
        assert f"moco/valid/{name}" in run.callback_metrics
    assert "moco/valid/probe_auroc_fracture" not in run.callback_metrics  # no label of it
    assert all(torch.isfinite(value) for value in run.callback_metrics.values())


@pytest.mark.parametrize("bn", ["grouped", "eval"])
def test_key_encoder_follows_by_the_average_head_included(tmp_path: Path, bn: Any) -> None:
    model = stage(momentum=0.75, bn=bn)
    start = {n: p.clone() for n, p in model.key_encoder.named_parameters()}
    assert same(state(model.encoder), state(model.key_encoder))
    trainer(tmp_path, max_steps=1).fit(model, datamodule=TinyData())
    online = dict(model.encoder.named_parameters())
    for name, parameter in model.key_encoder.named_parameters():
        expected = 0.75 * start[name] + 0.25 * online[name].detach()
        torch.testing.assert_close(parameter, expected)
        assert parameter.grad is None
        assert not parameter.requires_grad
    assert not torch.equal(model.key_encoder.head[0].weight, start["head.0.weight"])


@pytest.mark.parametrize(("bn", "follows"), [("grouped", False), ("eval", True)])
def test_batch_norm_of_the_keys(tmp_path: Path, bn: Any, follows: bool) -> None:
    model = stage(momentum=0.0, bn=bn)
    trainer(tmp_path, max_steps=2).fit(model, datamodule=TinyData())
    assert same(dict(model.encoder.named_buffers()), dict(model.key_encoder.named_buffers())) == (
        follows
    )


def test_groups_change_the_batch_statistics_of_the_keys() -> None:
    whole, groups, evaluated = stage(group_size=16), stage(group_size=4), stage(bn="eval")
    image = torch.rand(16, 1, SIZE, SIZE)
    gap = (whole.embed_keys(image) - groups.embed_keys(image)).abs().max()
    assert gap > 1e-2
    alone = torch.cat([evaluated.embed_keys(one[None]) for one in image])
    torch.testing.assert_close(evaluated.embed_keys(image), alone, rtol=0, atol=1e-5)


def test_checkpoints_of_callbacks_hold_the_updated_keys(tmp_path: Path) -> None:
    class Snapshot(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
            self.keys = state(pl_module.key_encoder)

    model, snapshot = stage(), Snapshot()
    trainer(tmp_path, max_steps=1, callbacks=[snapshot]).fit(model, datamodule=TinyData())
    assert same(snapshot.keys, state(model.key_encoder))


def test_accumulation_updates_keys_once_an_optimizer_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[tuple[int, int]] = []
    model = stage()
    run = trainer(tmp_path, accumulate_grad_batches=2, max_epochs=1, max_steps=-1)
    monkeypatch.setattr(
        "cxr_lightning.stages.moco.momentum_update",
        lambda pairs, momentum: steps.append((run.global_step, int(model.queue.filled))),
    )
    run.fit(model, datamodule=TinyData())
    # 4 batches, 2 optimizer steps; keys of micro-steps enter the queue of 32 // 4 all the same
    assert run.global_step == 2
    assert len(steps) == 2
    assert int(model.queue.filled) == TRAIN // 4


def test_queue_shrinks_to_a_quarter_of_the_training_images_and_fills(tmp_path: Path) -> None:
    for asked, size in ((16384, TRAIN // 4), (5, 5)):
        model = stage(queue_size=asked)
        trainer(tmp_path, max_steps=1).fit(model, datamodule=TinyData())
        assert len(model.queue) == size == int(model.queue.filled)
        torch.testing.assert_close(model.queue.keys.norm(dim=1), torch.ones(size))
        assert model.queue.weights.sum() == size


def test_validation_touches_nothing(tmp_path: Path) -> None:
    model = stage()
    trainer(tmp_path, max_steps=2).fit(model, datamodule=TinyData())
    before = state(model)
    run = trainer(tmp_path)
    first = run.validate(model, datamodule=TinyData(), verbose=False)
    assert same(before, state(model))
    assert set(before) == set(state(model))
    assert first == run.validate(model, datamodule=TinyData(), verbose=False)


def test_validation_is_the_same_however_images_are_batched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (8, 5):
        monkeypatch.setitem(globals(), "BATCH", size)
        run = trainer(tmp_path)
        found += run.validate(stage(), datamodule=TinyData(), verbose=False)
    for name in ("alignment", "effective_rank", "retrieval", "info_nce"):
        key = f"moco/valid/{name}"
        assert found[0][key] == pytest.approx(found[1][key], abs=1e-5), name


def test_validation_does_not_read_the_queue(tmp_path: Path) -> None:
    model = stage()
    run = trainer(tmp_path, max_steps=2)
    run.fit(model, datamodule=TinyData())
    first = run.validate(model, datamodule=TinyData(), verbose=False)[0]
    model.queue.keys.copy_(model.queue.keys.flip(1))
    assert first == run.validate(model, datamodule=TinyData(), verbose=False)[0]


def test_resumed_run_equals_one_run(tmp_path: Path) -> None:
    whole = stage(decay="constant")
    trainer(tmp_path, max_steps=8).fit(whole, datamodule=TinyData())
    first, second = stage(decay="constant"), stage(decay="constant")
    run = trainer(tmp_path, max_steps=4)
    run.fit(first, datamodule=TinyData())
    run.save_checkpoint(tmp_path / "last.ckpt")
    assert int(first.queue.filled) > 0
    assert first.centroids.known.all()
    trainer(tmp_path, max_steps=8).fit(
        second, datamodule=TinyData(), ckpt_path=str(tmp_path / "last.ckpt")
    )
    for name, tensor in state(whole).items():
        torch.testing.assert_close(state(second)[name], tensor, rtol=0, atol=1e-6, msg=name)


def test_queue_takes_the_size_that_the_checkpoint_has() -> None:
    source, target = stage(queue_size=5), stage(queue_size=9)
    checkpoint = {"state_dict": source.state_dict()}
    target.on_load_checkpoint(checkpoint)
    target.load_state_dict(checkpoint["state_dict"])
    assert len(target.queue) == 5


def test_product_is_the_query_encoder() -> None:
    model = stage()
    product = model.product()
    assert product.kind == "encoder"
    assert product.networks["encoder"] is model.encoder
    assert isinstance(model.encoder, Encoder)
    assert model.name == "moco"


def test_optimizer_is_sgd_over_the_encoder_alone(tmp_path: Path) -> None:
    model = stage()
    run = trainer(tmp_path, max_steps=1)
    run.fit(model, datamodule=TinyData())
    optimizer = run.optimizers[0]
    assert isinstance(optimizer, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"]) == (0.9, 1e-4)
    assert len(group["params"]) == len(list(model.encoder.parameters()))


@pytest.mark.parametrize(
    ("step", "weight"), [(0, 0.0), (99, 0.0), (100, 0.0), (125, 0.25), (150, 0.5), (999, 0.5)]
)
def test_clustering_weight_ramps_up_after_the_warm_up(step: int, weight: float) -> None:
    schedule = Clustering(weight=0.5, warmup_steps=100, ramp_steps=50)
    assert schedule.weight_at(step) == pytest.approx(weight)
    assert Clustering(weight=0.5, warmup_steps=100, ramp_steps=0).weight_at(100) == 0.5


def test_clustering_weight_multiplies_the_clustering_loss(tmp_path: Path) -> None:
    run = trainer(tmp_path, max_steps=1, limit_val_batches=0, log_every_n_steps=1)
    run.fit(stage(clustering={"weight": 2.0}), datamodule=TinyData())
    logged = {name.split("/")[-1]: float(v) for name, v in run.callback_metrics.items()}
    assert logged["clustering"] > 0.0
    expected = logged["info_nce"] + 2.0 * logged["clustering"]
    assert logged["loss"] == pytest.approx(expected, rel=1e-5)


def test_clustering_draws_categories_together() -> None:
    """Without InfoNCE, which pushes images apart, the pull brings a category to a point."""
    model = stage(clustering={"form": "pull"})
    model._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    batch = radiographs(BATCH, seed=0)
    image, weights = to_model(batch.image), category_weights(batch.condition, "binary")
    optimizer = torch.optim.Adam(model.encoder.parameters(), lr=0.01)
    distances = []
    for _ in range(20):
        embedding = model.encoder(image)
        distances.append(float(pair_distance(embedding.detach(), same_category(weights))))
        loss = model._cluster(embedding, weights, model.centroids.update(embedding, weights))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distances[-1] < 0.2 * distances[0]


def test_minority_alone_is_drawn_together() -> None:
    model = stage(clustering={"minority": True})
    model._trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    weights = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    key = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    totals = model.centroids.update(key, weights)
    embedding = key.clone().requires_grad_()
    model._cluster(embedding, weights, totals).backward()
    assert embedding.grad is not None
    assert embedding.grad[:3].abs().sum() == 0
    assert embedding.grad[3].abs().sum() > 0


def test_warns_of_a_collapse_once(tmp_path: Path) -> None:
    model = stage()
    for parameter in model.parameters():
        parameter.data.zero_()
    model.encoder.head[-1].bias.data.fill_(1.0)  # every image at one point
    run = trainer(tmp_path)
    with pytest.warns(UserWarning, match="effective rank.*clustering.weight"):
        run.validate(model, datamodule=TinyData(), verbose=False)
    assert model.monitors.collapsed
    healthy = Seen(*(torch.nn.functional.normalize(torch.randn(64, 32), dim=1),) * 5)
    spreads = spread(healthy.first, healthy.second, torch.zeros(64, 2))
    model.monitors.warn_of_collapse(spreads, healthy, 2, step=5)
    assert not model.monitors.collapsed


def test_warns_when_the_clustering_loss_is_never_used(tmp_path: Path) -> None:
    model = stage(clustering={"warmup_steps": 100})
    with pytest.warns(UserWarning, match="warmup_steps: 100 .* 4 steps"):
        trainer(tmp_path).fit(model, datamodule=TinyData())


def test_warns_when_the_batch_is_one_group(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="model.bn: a batch of 8"):
        trainer(tmp_path, max_steps=1).fit(stage(group_size=5), datamodule=TinyData())


def test_augmentation_by_name_or_by_settings() -> None:
    assert stage(augmentation="moco_cxr").augmentation == PRESETS["moco_cxr"]
    assert stage(augmentation=Augmentation(flip=0.5)).augmentation.flip == 0.5


@pytest.mark.parametrize(
    ("scheme", "names"), [("ward", ("east", "west")), ("sex", ("female", "male"))]
)
def test_scheme_may_be_a_column(tmp_path: Path, scheme: str, names: tuple[str, ...]) -> None:
    model = stage(clustering={"scheme": scheme, "weight": 0.5 * (scheme == "ward")})
    trainer(tmp_path, max_steps=1).fit(model, datamodule=TinyData())
    assert model.categories == names
    assert model.queue.weights.shape == (TRAIN // 4, 2)
    assert model.queue.weights.sum() == (TRAIN // 4 if scheme == "ward" else 0)


def test_kmeans_finds_clusters_once_an_epoch_after_the_warm_up(tmp_path: Path) -> None:
    model = stage(clustering={"scheme": "kmeans", "clusters": 4, "warmup_steps": 2})
    found: list[int] = []
    original = model._find_clusters
    model._find_clusters = lambda: (found.append(model.global_step), original())  # type: ignore
    trainer(tmp_path, max_steps=6).fit(model, datamodule=TinyData())
    assert found == [2, 4]  # epochs are of 4 steps
    assert (model.tables["shares"].sum(dim=1) == 1).all()
    assert model.centroids.known.all()
    assert model.clustered_epoch == 1


def test_more_clusters_than_images_are_refused(tmp_path: Path) -> None:
    model = stage(clustering={"scheme": "kmeans", "clusters": TRAIN + 1})
    with pytest.raises(UserError, match="model.clustering.clusters: 33 are more than the 32"):
        trainer(tmp_path).fit(model, datamodule=TinyData())


def test_validation_of_a_set_without_training_images(tmp_path: Path) -> None:
    class ValidOnly(TinyData):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.rows["train"] = np.arange(0)

    found = trainer(tmp_path).validate(stage(), datamodule=ValidOnly(), verbose=False)[0]
    assert "moco/valid/loss" in found
    assert "moco/valid/probe_auroc" not in found
    with pytest.raises(UserError, match="data.root: .* no training images"):
        trainer(tmp_path).test(stage(), datamodule=ValidOnly(), verbose=False)


def test_clusters_are_in_the_checkpoint() -> None:
    shares = torch.nn.functional.one_hot(torch.arange(8) % 4).float()
    source, target = (stage(clustering={"scheme": "kmeans", "clusters": 4}) for _ in range(2))
    source.tables["shares"], source.clustered_epoch = shares, 3
    checkpoint: dict[str, Any] = {"state_dict": source.state_dict()}
    source.on_save_checkpoint(checkpoint)
    target.on_load_checkpoint(checkpoint)
    target.load_state_dict(checkpoint["state_dict"])
    assert target.clustered_epoch == 3
    assert torch.equal(target.tables["shares"], shares)


def test_keys_show_another_image_of_the_patient_and_its_other_keys_do_not_repel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []

    def two_views(image: Any, draws: Any, augmentation: Any, partner: Any) -> Any:
        seen.append((image, partner))
        return image, partner

    def logits(*arguments: Any) -> Any:
        excluded.append(arguments[-1])
        return info_nce_logits(*arguments)

    excluded: list[Any] = []
    model, data = stage(positives="patient"), TinyData()
    monkeypatch.setattr("cxr_lightning.stages.moco.two_views", two_views)
    monkeypatch.setattr("cxr_lightning.stages.moco.info_nce_logits", logits)
    trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(model, datamodule=data)
    everything = to_model(radiographs(TRAIN, seed=0).image)
    for number, (image, partner) in enumerate(seen):
        assert partner is not None
        for own, other in zip(image, partner, strict=True):
            rows = [
                int((everything - x).abs().flatten(1).sum(dim=1).argmin()) for x in (own, other)
            ]
            assert rows[0] != rows[1]
            assert rows[0] // 4 == rows[1] // 4  # four images a patient
        if number == 0:
            assert not excluded[0].any()  # nobody is in the queue yet
    assert excluded[1].shape == (BATCH, TRAIN // 4)
    assert not excluded[1].any()  # the second batch has other patients
    assert model.queue.patients.tolist() == [2] * 4 + [3] * 4


def test_warns_where_no_patient_has_two_images(tmp_path: Path) -> None:
    class Singles(TinyData):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.prepared.table["patient"] = self.prepared.table["Path"]

    with pytest.warns(UserWarning, match="model.positives: no patient has two"):
        trainer(tmp_path, max_steps=1).fit(stage(positives="patient"), datamodule=Singles())


@pytest.mark.parametrize(
    ("value", "reason"),
    [(0, "no image of abnormal"), (1, "images of one patient alone of abnormal")],
)
def test_warns_of_categories_of_no_image_or_one_patient(
    tmp_path: Path, value: int, reason: str
) -> None:
    class Rare(TinyData):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            shown = torch.arange(TRAIN) < value
            self.condition.value[:, 5] = shown.float()
            self.condition.value[:, 0] = 1.0 - shown.float()

    with pytest.warns(UserWarning, match=f"model.clustering.scheme: .* {reason}"):
        trainer(tmp_path, max_steps=1).fit(stage(), datamodule=Rare())


def test_labels_that_are_all_blank_are_refused_unless_clustering_is_off(tmp_path: Path) -> None:
    class Blank(TinyData):
        def setup(self, stage: str | None = None) -> None:
            super().setup(stage)
            self.condition = Condition.unknown(TRAIN)

    with pytest.raises(UserError, match="model.clustering.scheme: no training image"):
        trainer(tmp_path, max_steps=1).fit(stage(), datamodule=Blank())
    plain = stage(clustering={"weight": 0.0})
    trainer(tmp_path, max_steps=1).fit(plain, datamodule=Blank())


class JudgedData(TinyData):
    """The training images once more as a test split of other patients."""

    def test_dataloader(self) -> DataLoader[Any]:
        return self._batches(TRAIN, seed=0)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self.rows = {"train": np.arange(16), "valid": np.arange(4), "test": np.arange(16, TRAIN)}


def test_test_judges_the_trained_encoder_and_products_side_by_side(
    tmp_path: Path, products: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = stage(encoders=[products / "encoder"])
    run = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    run.fit(model, datamodule=JudgedData())
    logged = run.test(model, datamodule=JudgedData(), verbose=False)[0]
    content = json.loads((tmp_path / "linear_evaluation.json").read_text())
    assert list(content["encoders"]) == ["random", "this", "encoder"]
    assert content["encoders"]["encoder"]["sha256"]
    assert content["split"] == "test"
    records = {(r["encoder"], r["fraction"], r["label"]): r for r in content["records"]}
    assert ("this", 1.0, "Edema") in records
    # brighter on the right where there is edema: random features tell that too
    assert records["this", 1.0, "macro"]["auroc"] > 0.7
    found = logged["moco/test/linear_auroc_this_1"]
    assert found == pytest.approx(records["this", 1.0, "macro"]["auroc"])
    assert {entry["label"] for entry in content["skipped"]} >= {"Pneumonia"}
    gains = records["encoder", 1.0, "macro"]["gains"]
    assert list(gains) == ["random", "this"]
    less = records["encoder", 1.0, "macro"]["auroc"] - found
    assert gains["this"]["value"] == pytest.approx(less)
    said = capsys.readouterr().out
    assert "over random" in said
    assert "over this" in said


@pytest.mark.parametrize("run", ["random", "imagenet", "this"])
def test_a_run_of_the_name_of_a_baseline_has_its_path_as_name(
    tmp_path: Path, products: Path, run: str
) -> None:
    folder = tmp_path / run / "product"
    shutil.copytree(products / "encoder", folder)
    names = [judged.name for judged in open_encoders([folder, folder, products / "encoder"])]
    assert names == [str(folder), "encoder"]


def test_test_without_a_training_looks_for_the_product_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.encoders: no product at"):
        trainer(tmp_path).test(stage(), datamodule=JudgedData(), verbose=False)


def test_starts_from_imagenet_weights_and_names_them_as_parent(tmp_path: Path) -> None:
    from torchvision import models

    torch.save(models.resnet18(weights=None).state_dict(), tmp_path / "resnet18.pth")
    model = stage(backbone="resnet18", imagenet=tmp_path / "resnet18.pth")
    assert model.product().parents == {"imagenet": sha256_file(tmp_path / "resnet18.pth")}
    assert same(state(model.encoder), state(model.key_encoder))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dim": 0},
        {"queue_size": 0},
        {"group_size": 1},
        {"momentum": 1.0},
        {"temperature": 0.0},
        {"clustering": {"weight": -1.0}},
        {"clustering": {"momentum": -0.1}},
        {"clustering": {"temperature": 0.0}},
        {"clustering": {"warmup_steps": -1}},
        {"clustering": {"scheme": "multi", "minority": True}},
        {"clustering": {"clusters": 1}},
    ],
)
def test_settings_out_of_range_are_refused_in_one_sentence(wrong: dict[str, Any]) -> None:
    name = next(iter(wrong))
    with pytest.raises(UserError, match=f"model.{name}") as error:
        stage(**wrong)
    assert str(error.value).endswith(".")


def fit_on_two_processes(folder: Path) -> None:
    """What each of the two processes below runs."""
    clustering = {"scheme": "kmeans", "clusters": 4}
    model = stage(group_size=2, positives="patient", clustering=clustering)
    run = trainer(folder, max_steps=6, devices=2, strategy="ddp", use_distributed_sampler=False)
    run.fit(model, datamodule=TinyData())
    metrics = {name: float(value) for name, value in run.callback_metrics.items()}
    found = model.state_dict() | model.tables
    torch.save((found, metrics), folder / f"{run.global_rank}.pt")


@pytest.mark.slow
def test_two_processes_hold_the_same_queue_and_centroids(tmp_path: Path) -> None:
    on_ranks(lambda: fit_on_two_processes(tmp_path))
    (first, metrics), (second, others) = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    shared = [name for name in first if "running" not in name and "key_encoder" not in name]
    shared += [name for name in first if name.startswith("key_encoder.head")]
    assert {"queue.keys", "queue.patients", "centroids.vectors", "shares"} <= set(shared)
    for name in shared:
        assert torch.equal(first[name], second[name]), name
    valid = [name for name in metrics if "valid" in name]
    assert valid
    assert all(metrics[name] == others[name] for name in valid)
    assert first["queue.weights"].sum() == TRAIN // 4
