"""`mae evaluate`, on coloured squares whose colour is their class."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier
from starlette.testclient import TestClient

from model.checkpoints.checkpoint import Checkpoint, load, save
from model.checkpoints.heads import Head, Heads
from model.checkpoints.native import HeadConfig
from model.config import MAEConfig, Preprocessing
from model.nn.vit import MaskedAutoencoder
from service.api.app import create_app
from tests.service.cli.conftest import Mae

COLOURS = {"green": (40, 200, 60), "red": (200, 60, 40), "violet": (120, 40, 200)}
SMALL = MAEConfig(
    name="small",
    image_size=32,
    patch_size=8,
    embed_dim=16,
    depth=1,
    num_heads=2,
    decoder_embed_dim=8,
    decoder_depth=1,
    decoder_num_heads=2,
)
ENGINE = ("--backend", "torch", "--lanes", "1")


def paint(folder: Path, each: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(each):
            pixels = np.clip(generator.normal(colour, 45, (32, 32, 3)) + generator.normal(0, 25, 3), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / name / f"{number}.png")


def write_weights(path: str, half: bool = False, config: MAEConfig = SMALL, heads: Heads | None = None) -> None:
    torch.manual_seed(0)
    tensors = {
        name: x if "pos_embed" in name else torch.randn_like(x) * 0.3
        for name, x in MaskedAutoencoder(config).state_dict().items()
    }
    save(Path(path), Checkpoint(config, Preprocessing(), "mae-serve", tensors, heads=heads or Heads()), half)


@pytest.fixture
def colours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders `train` and `data` of classes, and `small.safetensors`, in the current folder."""
    monkeypatch.chdir(tmp_path)
    paint(Path("train"), 12, seed=0)
    paint(Path("data"), 8, seed=1)
    write_weights("small.safetensors")


def wait_until_ready(client: TestClient) -> None:
    end = time.monotonic() + 60
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.02)


def run_evaluate(mae: Mae, *arguments: object) -> dict:
    result = mae("evaluate", "--weights", "small.safetensors", *ENGINE, *arguments, "--json", "-")
    assert result.code == 0, result.err
    return json.loads(result.out)


def run_embed(mae: Mae, folder: str, *arguments: object) -> tuple[list[str], np.ndarray]:
    options = ("--weights", "small.safetensors", *ENGINE, "-o", "vectors.npz", "--overwrite")
    assert mae("embed", folder, *options, *arguments).code == 0
    with np.load("vectors.npz") as out:
        return out["paths"].tolist(), out["vectors"]


def classes(paths: list[str]) -> list[str]:
    return [Path(path).parent.name for path in paths]


def test_neighbours_are_those_of_scikit_learn_on_embedded_images(mae: Mae, colours: None) -> None:
    evaluation = run_evaluate(mae, "--train", "train", "--data", "data", "--neighbours", 1)
    assert (evaluation["images"]["train"], evaluation["images"]["measured"], evaluation["images"]["classes"]) == (
        36,
        24,
        3,
    )
    for pool in ("cls", "mean"):
        (fit_paths, fit), (paths, vectors) = (run_embed(mae, name, "--pool", pool) for name in ("train", "data"))
        [result] = [r for r in evaluation["classification"] if (r["features"], r["keep"]) == (pool, 1)]
        pca = PCA(whiten=True, svd_solver="full", n_components=15).fit(fit.astype(np.float64))
        for way, (a, b) in {
            "raw": (fit, vectors),
            "centred": (fit - fit.mean(axis=0), vectors - fit.mean(axis=0)),
            "whitened": (pca.transform(fit), pca.transform(vectors)),
        }.items():
            classifier = KNeighborsClassifier(1, metric="cosine").fit(a, classes(fit_paths))
            assert result["knn"][way] == pytest.approx(classifier.score(b, classes(paths))), (pool, way)
    thumbnails = evaluation["classification"][-1]
    assert (thumbnails["features"], thumbnails["dim"]) == ("thumbnail", 768)
    assert thumbnails["linear"]["accuracy"] > 0.9 and evaluation["largest_class"] == pytest.approx(1 / 3)
    assert [(r["features"], r["keep"]) for r in evaluation["classification"][:-1]] == [
        (pool, keep) for pool in ("cls", "mean") for keep in (1, 0.5, 0.25)
    ]


def test_reconstructions_are_those_of_mae_reconstruct(mae: Mae, colours: None) -> None:
    """The figures of one image: the loss that `mae reconstruct` prints for the seed of its number, and its picture."""
    for path in (*Path("data").rglob("*.png"),):
        if path.stem != "0":
            path.unlink()
    evaluation = run_evaluate(mae, "--train", "train", "--data", "data", "--seed", 5)
    engine = ("--weights", "small.safetensors", *ENGINE)
    losses, decibels = [], []
    for number, name in enumerate(sorted(COLOURS)):
        seed = ("--seed", 5 + number, "--mask-ratio", 0.5)
        result = mae("reconstruct", f"data/{name}/0.png", "-o", "out.png", *engine, *seed, "--json")
        losses.append(json.loads(result.out)["loss"])
        pictures = [np.asarray(Image.open(path)).astype(float) for path in ("out.png", f"data/{name}/0.png")]
        decibels.append(10 * np.log10(255**2 / np.square(pictures[0] - pictures[1]).mean()))
    first = evaluation["reconstruction"][0]
    assert (first["strategy"], first["mask_ratio"]) == ("random", 0.5)
    assert first["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert first["psnr_db"] == pytest.approx(np.mean(decibels), rel=1e-5)
    assert [(r["strategy"], r["mask_ratio"]) for r in evaluation["reconstruction"]] == [
        ("random", 0.5), ("random", 0.75), ("random", 0.9), ("block", 0.75), ("grid", 0.75)
    ]  # fmt: skip
    assert run_evaluate(mae, "--train", "train", "--data", "data", "--seed", 5) == evaluation


def test_one_folder_is_split_by_class_and_a_table_and_a_sheet_are_made(mae: Mae, colours: None) -> None:
    Path("data/red/torn.png").write_bytes(b"\x89PNG no more")
    command = ("evaluate", "--weights", "small.safetensors", *ENGINE, "--data", "data")
    result = mae(*command, "--test-share", 0.25, "--sheet", "sheet.png", "--json", "out.json")
    assert result.code == 0
    assert "data/red/torn.png" in result.err and "1 of 25 images could not be used" in result.err
    evaluation = json.loads(Path("out.json").read_text())
    assert sum(evaluation["images"][part] for part in ("train", "measured")) == 24
    assert evaluation["images"]["measured"] in (5, 6) and "25% of each class" in evaluation["images"]["split"]
    assert len(evaluation["images"]["broken"]) == 1 and "torn.png" in evaluation["images"]["broken"][0]
    assert (
        "whitened" in result.out
        and "thumbnail" in result.out
        and f"{evaluation['reconstruction'][1]['loss']:.3f}" in result.out
    )
    with Image.open("sheet.png") as sheet:
        assert sheet.width == 4 * 32 + 3 * 8 and (sheet.height + 8) % 40 == 0


def test_a_limit_is_for_a_quick_look(mae: Mae, colours: None) -> None:
    evaluation = run_evaluate(mae, "--train", "train", "--data", "data", "--limit", 9)
    assert (evaluation["images"]["train"], evaluation["images"]["measured"]) == (9, 9)


def test_an_encoder_alone_is_evaluated_without_reconstructions(mae: Mae, colours: None) -> None:
    write_weights("small.safetensors", config=SMALL.model_copy(update={"decoder_depth": 0}))
    assert run_evaluate(mae, "--data", "data")["reconstruction"] == []
    result = mae("evaluate", "--weights", "small.safetensors", *ENGINE, "--data", "data", "--sheet", "sheet.png")
    assert result.code == 2 and "has no decoder" in result.err


@pytest.mark.parametrize("half", [False, True])
def test_whitening_is_fitted_stored_and_applied(mae: Mae, colours: None, half: bool) -> None:
    head = Head(HeadConfig(pool="cls", classes=("a", "b")), np.ones((2, 16), np.float32), np.zeros(2, np.float32))
    write_weights("small.safetensors", half, heads=Heads(head))
    before = load_file("small.safetensors")
    result = mae("evaluate", "--fit", "--weights", "small.safetensors", *ENGINE, "--data", "train")
    assert result.code == 0 and "fitted on 36 images" in result.out
    assert "36 images are few for whitening of 16 numbers" in result.err
    after = load_file("small.safetensors")
    assert {name: x.dtype for name, x in after.items() if name in before} == {n: x.dtype for n, x in before.items()}
    assert all(torch.equal(after[name], x) for name, x in before.items())
    for pool in ("cls", "mean"):
        _, raw = run_embed(mae, "train", "--pool", pool)
        _, white = run_embed(mae, "train", "--pool", pool, "--whiten")
        expected = PCA(whiten=True, svd_solver="full").fit_transform(raw.astype(np.float64))[:, : white.shape[1]]
        expected *= np.sqrt(36 / 35) * np.sign((expected * white).sum(axis=0))
        np.testing.assert_allclose(white, expected, atol=0.02)


def test_whitened_vectors_through_the_route(
    mae: Mae, colours: None, monkeypatch: pytest.MonkeyPatch, environment: Mapping[str, str]
) -> None:
    assert mae("evaluate", "--fit", "--weights", "small.safetensors", *ENGINE, "--data", "train").code == 0
    _, white = run_embed(mae, "data", "--whiten", "--normalize")
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, atol=1e-5)
    monkeypatch.setenv("MAE_WEIGHTS", "small.safetensors")
    monkeypatch.setenv("MAE_BACKEND", "torch")
    files = [("image", path.read_bytes()) for path in sorted(Path("data").rglob("*.png"))]
    with TestClient(create_app()) as client:
        wait_until_ready(client)
        assert client.get("/info").json()["engine"]["whitening"] == ["cls", "mean"]
        together = client.post("/embed?whiten=true&normalize=true", files=files).json()
        assert together["whitened"] is True and together["dim"] == white.shape[1] < 16
        np.testing.assert_allclose(together["embeddings"], white, atol=1e-4)
        assert "whitened" not in client.post("/embed", files=files[:1]).json()
        refused = client.post("/embed?whiten=true&pool=tokens", files=files[:1])
        assert (refused.status_code, refused.json()["error"]["details"]) == (422, {"parameter": "whiten"})


def test_raw_and_whitened_vectors_are_never_mixed(mae: Mae, colours: None) -> None:
    assert mae("evaluate", "--fit", "--weights", "small.safetensors", *ENGINE, "--data", "train").code == 0
    command = ("embed", "data", "--weights", "small.safetensors", *ENGINE, "-o", "out.npz")
    assert mae(*command).code == 0
    result = mae(*command, "--whiten")
    assert result.code == 2 and "whiten=False" in result.err


def test_whitening_of_a_model_without_it_is_refused(mae: Mae, colours: None, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("embed", "data", "--weights", "small.safetensors", *ENGINE, "-o", "out.npz", "--whiten")
    result = mae(*command)
    assert result.code == 2 and "whiten: the model holds no whitening of pool=mean" in result.err
    assert "whiten: " in mae(*command, "--pool", "tokens").err and not Path("out.npz").exists()
    monkeypatch.setenv("MAE_WEIGHTS", "small.safetensors")
    monkeypatch.setenv("MAE_BACKEND", "torch")
    with TestClient(create_app()) as client:
        wait_until_ready(client)
        refused = client.post("/embed?whiten=true", files=[("image", next(Path("data").rglob("*.png")).read_bytes())])
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_parameter")
    assert refused.json()["error"]["details"] == {"parameter": "whiten"}


def test_without_classes_reconstruction_is_measured(mae: Mae, colours: None) -> None:
    """The figures are those of the same images in classes: they have the same order and so the same masks."""
    Path("plain").mkdir()
    Path("album/all").mkdir(parents=True)
    for path in sorted(Path("data").rglob("*.png")):
        for folder in ("plain", "album/all"):
            Path(folder, f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    with_classes = run_evaluate(mae, "--train", "train", "--data", "data")
    for folder in ("plain", "album"):
        evaluation = run_evaluate(mae, "--data", folder)
        assert evaluation["reconstruction"] == with_classes["reconstruction"]
        assert (evaluation["classification"], evaluation["largest_class"]) == ([], None)
        assert (evaluation["images"]["measured"], evaluation["images"]["classes"]) == (24, 0)
    table = mae("evaluate", "--weights", "small.safetensors", *ENGINE, "--data", "plain").out
    assert "24 images measured" in table and "PSNR" in table and "k-NN" not in table


def test_without_classes_and_without_a_decoder_nothing_is_measured(mae: Mae, colours: None) -> None:
    write_weights("small.safetensors", config=SMALL.model_copy(update={"decoder_depth": 0}))
    result = mae("evaluate", "--weights", "small.safetensors", *ENGINE, "--data", "data/red")
    assert result.code == 2 and "there are no classes, and small has no decoder" in result.err


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No engine can be built."""
    monkeypatch.setattr("service.cli.commands.evaluate.build_engine", None)


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        (("--weights", "wide.pth"), "mae convert"),
        (("--model", "mae_tiny"), "are never changed"),
        (("--weights", "small.safetensors", "--image-size", "64"), "IMAGE_SIZE is set"),
    ],
)
def test_a_whitening_that_could_not_be_stored_is_refused_before_an_engine_is_built(
    mae: Mae, colours: None, no_engine: None, weights: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MAE_WEIGHTS")
    torch.save({"model": load(Path("small.safetensors")).tensors}, "wide.pth")
    result = mae("evaluate", "--fit", "--data", "train", *weights)
    assert result.code == 2 and sentence in result.err


def test_foreign_weights_need_an_output(mae: Mae, colours: None) -> None:
    width = {"embed_dim": 192, "num_heads": 3, "decoder_embed_dim": 128, "decoder_num_heads": 4}
    write_weights("wide.safetensors", config=SMALL.model_copy(update=width))
    torch.save({"model": load(Path("wide.safetensors")).tensors}, "wide.pth")
    command = ("evaluate", "--fit", "--data", "train", "--weights", "wide.pth", *ENGINE)
    foreign = mae(*command)
    assert foreign.code == 2 and "mae convert" in foreign.err and "-o OUT.safetensors" in foreign.err
    assert mae(*command, "-o", "ours.safetensors").code == 0
    ours = load(Path("ours.safetensors"))
    assert ours.layout == "mae-serve" and set(ours.heads.whitening) == {"cls", "mean"}


def test_the_packaged_weights_are_left_alone(mae: Mae, colours: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAE_WEIGHTS")
    packaged = mae("evaluate", "--fit", "--data", "train")
    assert packaged.code == 2 and "pass -o OUT.safetensors" in packaged.err
    assert mae("evaluate", "--fit", "--data", "train", "-o", "mine.safetensors").code == 0
    assert set(load(Path("mine.safetensors")).heads.whitening) == {"cls", "mean"}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no images are given: name a folder with --data"),
        (["--fit"], "no images are given"),
        (["--data", "nowhere"], "nowhere: No such file or directory"),
        (["--data", "mixed"], "lies in no class"),
        (["--data", "data", "--train", "one"], "which is not among the 1 known ones"),
        (["--data", "one", "--train", "one"], "there is one class alone"),
        (["--data", "other", "--train", "train"], "which is not among the 3 known ones"),
        (["--data", "data", "--limit", "0"], "limit: Input should be greater than 0"),
        (["--data", "data", "-o", "x.safetensors"], "-o belongs to --fit"),
        (["--data", "data", "--fit", "--json", "-"], "--fit measures nothing"),
        (["--data", "data", "--json", "-", "--sheet", "-"], "cannot both go to standard output"),
        (["--data", "data", "--fit", "-o", "x.pth"], "x.pth should end in .safetensors"),
        (["--data", "data", "--fit", "--image-size", "64"], "IMAGE_SIZE is set"),
        (["--data", "same", "--fit"], "whitening needs vectors that differ"),
        (["--data", "torn", "--fit"], "none of the images can be used"),
        (["--data", "torn"], "can be used"),
    ],
)
def test_what_cannot_be_is_one_sentence(mae: Mae, colours: None, arguments: list[str], sentence: str) -> None:
    for name in ("one/red", "other/blue", "same", "mixed", "mixed/red"):
        Path(name).mkdir(parents=True)
        Image.new("RGB", (32, 32), "red").save(f"{name}/0.png")
    for name in ("torn/red", "torn/blue"):
        Path(name).mkdir(parents=True)
        for number in range(2):
            Path(name, f"{number}.png").write_bytes(b"no image")
    result = mae("evaluate", "--weights", "small.safetensors", *ENGINE, *arguments)
    assert result.code == 2 and result.out == ""
    last = result.err.splitlines()[-1]
    assert last.startswith("mae: ") and sentence in last and "Traceback" not in result.err
