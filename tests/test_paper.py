"""The paper's experiments, on networks of a few hundred parameters: they run to their end, go on where they were cut, and see
when their settings change."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from examples.paper.__main__ import main, run
from examples.paper.data import DEVIATION, SIDE, order, tiny_imagenet
from examples.paper.files import read_json
from examples.paper.settings import SUBJECTS, Settings
from examples.paper.subjects import make_subject
from examples.paper.training import Training, checkpoint, train
from nngeo import FMat

CPU = torch.device("cpu")
TINY = {"trials": 2, "vectors": 2, "each": 17, "examples": 4, "batch": 8}
RESNET = Settings("resnet", steps=(0, 2), depths=(1, 1), widths=(2, 4, 4), **TINY)
GPT2 = Settings("gpt2", steps=(0, 2), depths=(1,), widths=(4,), length=8, **{**TINY, "examples": 40})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resnet")
    run(RESNET, folder, CPU)
    return folder


def test_numbers_and_pictures_are_saved(finished: Path) -> None:
    text = (finished / "numbers.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## step-0",
        "## step-2",
        "## Kernels",
        "## Costs",
    ]
    assert {path.name for path in finished.glob("*.png")} == {
        *("figure-3.png", "figures-4-5-6.png", "figure-7.png", "alignment.png")
    }
    totals = {
        name: one["total"] for name, one in read_json(finished / "comparison-step-2.json")["measurements"].items()
    }
    assert list(totals) == ["diag", "quasidiag", "kfac", "ekfac"]
    assert [abs(totals[name]["trace_error"]) < 1e-4 for name in totals] == [True, True, False, True]
    assert FMat.load(finished / "kernel-step-2.safetensors").size() == (1, 34, 1, 34)
    assert list(finished.rglob("unfinished-*")) == []


def test_a_run_goes_on_where_it_was_cut(finished: Path, tmp_path: Path) -> None:
    """Only what is missing is computed again, and comes out as it did."""
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    (folder / "comparison-step-2.json").unlink()
    (folder / "kernel-step-2.safetensors").unlink()
    kept = folder / "comparison-step-0.json"
    before = kept.stat().st_mtime_ns
    run(RESNET, folder, CPU)
    assert kept.stat().st_mtime_ns == before
    again, first = (read_json(place / "comparison-step-2.json") for place in (folder, finished))
    assert {name: one["total"] for name, one in again["measurements"].items()} == {
        name: one["total"] for name, one in first["measurements"].items()
    }


def test_settings_that_changed_are_noticed(finished: Path) -> None:
    with pytest.raises(ValueError, match=r"trials was 2 and is 3\): give another --output, or remove it"):
        run(replace(RESNET, trials=3), finished, CPU)


def test_training_that_was_cut_ends_where_it_would_have(tmp_path: Path) -> None:
    steps, ends = (0, 2, 5), []
    for name, cut_at in (("whole", None), ("cut", 4)):
        if cut_at is not None:
            with pytest.raises(KeyboardInterrupt):
                train(_network(), _training(cut_at), steps, tmp_path / name, every=1)
        train(_network(), _training(), steps, tmp_path / name, every=1)
        ends.append([torch.load(checkpoint(tmp_path / name, f"step-{step}"), weights_only=True) for step in steps])
        assert not checkpoint(tmp_path / name, "training").exists()
    for whole, cut in zip(*ends, strict=True):
        assert whole.keys() == cut.keys()
        assert all(torch.equal(whole[key], cut[key]) for key in whole)
    assert not torch.equal(ends[0][0]["0.weight"], ends[0][1]["0.weight"])


def _network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def _training(cut_at: int | None = None) -> Training:
    def batch(step: int) -> tuple[Tensor, ...]:
        if step == cut_at:
            raise KeyboardInterrupt
        return (torch.randn(6, 3, generator=torch.Generator().manual_seed(step)),)

    return Training(batch, lambda model, batch: model(batch[0]).square().mean(), torch.optim.Adam, calibrating=2)


def test_running_statistics_of_a_state_are_those_of_its_batches(tmp_path: Path) -> None:
    training, model = _training(), _network()
    train(model, training, (0,), tmp_path)
    state = torch.load(checkpoint(tmp_path, "step-0"), weights_only=True)
    hidden = torch.stack([model[0](training.batch(step)[0]) for step in range(2)])
    assert torch.allclose(state["1.running_mean"], hidden.mean((0, 1)), atol=1e-6)
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_order_has_every_example_once_in_an_epoch_and_another_order_in_the_next() -> None:
    epochs = [torch.cat([order(10, 3, step, seed=0) for step in range(3 * k, 3 * k + 3)]).tolist() for k in range(2)]
    assert [len(set(epoch)) for epoch in epochs] == [9, 9]
    assert epochs[0] != epochs[1]
    assert order(2, 3, 5, seed=0).numel() == 2


def tiny_folder(folder: Path) -> Path:
    """Two classes with two images each, one of them grey, one of another size."""
    for number, name in enumerate(("n01", "n02")):
        images = folder / "train" / name / "images"
        images.mkdir(parents=True)
        Image.new("RGB", (SIDE, SIDE), (255 * number, 0, 255)).save(images / f"{name}_0.JPEG", quality=100)
        Image.new("L", (SIDE, SIDE + 8), 100).save(images / f"{name}_1.JPEG")
    held_out = folder / "val" / "images"
    held_out.mkdir(parents=True)
    for k in range(4):
        Image.new("RGB", (SIDE, SIDE), (60 * k, 10, 10)).save(held_out / f"val_{k}.JPEG")
    lines = [f"val_{k}.JPEG\tn0{2 - k % 2}\t0\t0\t63\t63\n" for k in range(4)]
    (folder / "val" / "val_annotations.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def test_the_layout_of_tiny_imagenet_is_read(tmp_path: Path) -> None:
    seen, held_out = tiny_imagenet(tiny_folder(tmp_path))
    assert (list(seen.classes), seen.targets.tolist(), held_out.targets.tolist()) == (
        ["n01", "n02"],
        [0, 0, 1, 1],
        [1, 0, 1, 0],
    )
    images, targets = seen.batch(torch.tensor([2, 1]))
    assert (images.shape, targets.tolist()) == ((2, 3, SIDE, SIDE), [1, 0])
    red, green, blue = ((images[0] - images[1]) * torch.tensor(DEVIATION).view(3, 1, 1)).mean((1, 2)).tolist()
    assert (red, green, blue) == pytest.approx(((255 - 100) / 255, -100 / 255, (255 - 100) / 255), abs=0.02)
    _, labels = held_out.of_classes(0, 1, 5)
    assert labels.tolist() == [0, 0, 1, 1]


def test_a_run_on_a_folder_of_images(tmp_path: Path) -> None:
    data = tiny_folder(tmp_path / "data")
    settings = replace(RESNET, data=str(data), steps=(0,), classes=(0, 1), batch=4)
    text = run(settings, tmp_path / "results", CPU)
    assert "4 examples, classif_logits (2 draws for each example)" in text


def test_another_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected train/<wnid>/images/\*.JPEG \(found 0 classes\)"):
        tiny_imagenet(tmp_path)
    folder = tiny_folder(tmp_path)
    shutil.rmtree(folder / "train" / "n02")
    with pytest.raises(ValueError, match="classes without a folder .*: n02"):
        tiny_imagenet(folder)


def test_language_model_and_sentence_encoder(tmp_path: Path) -> None:
    """The tied embedding has its exact block; the encoder's states are random and real weights, without any training."""
    assert "40 examples, causal_lm_logits (2 draws for each example)" in run(GPT2, tmp_path / "gpt2", CPU)
    subject = make_subject(replace(SUBJECTS["minilm"]["quick"], examples=2), CPU)
    assert (subject.points, [batch[0].shape for batch in subject.examples]) == (("random", "real"), [(2, 16)])
    embeddings = subject.function(*subject.examples[0])
    assert embeddings.shape == (2, 384)
    assert embeddings.norm(dim=1).tolist() == pytest.approx([1, 1])


def test_data_is_for_images_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--subject", "gpt2", "--data", "."])
    assert "--data is for --subject resnet" in capsys.readouterr().err
