from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version
from PIL import Image, features
from transformers import AutoModelForImageTextToText, AutoProcessor

import fopru
from fopru import loading, pictures, versions
from fopru.pictures import load_image


def test_load_gives_the_same_model_as_the_auto_classes():
    model, processor = fopru.load("pocket")
    theirs = AutoModelForImageTextToText.from_pretrained(fopru.pocket.folder())
    mine, other = model.state_dict(), theirs.state_dict()
    assert mine.keys() == other.keys()
    assert all(torch.equal(mine[name], other[name]) for name in mine)
    assert not model.training
    assert next(model.parameters()).dtype == torch.float32
    assert type(processor) is type(AutoProcessor.from_pretrained(fopru.pocket.folder()))
    assert type(processor.image_processor).__name__.endswith("Pil")


def test_pictures_become_upright_rgb(tmp_path):
    red = np.zeros((20, 30, 4), np.uint8)
    red[..., 0], red[:, :15, 3] = 255, 255  # the right half is transparent
    Image.fromarray(red, "RGBA").save(tmp_path / "rgba.png")
    rgb = np.asarray(load_image(tmp_path / "rgba.png"))
    assert rgb.shape == (20, 30, 3)
    assert rgb[0, 0].tolist() == [255, 0, 0]
    assert rgb[0, -1].tolist() == [255, 255, 255]

    deep = np.linspace(0, 65535, 400, dtype=np.uint16).reshape(20, 20)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    grey = np.asarray(load_image(tmp_path / "deep.png")).astype(int)
    assert np.abs(grey[..., 0] - deep / 257).max() <= 1
    assert (grey[..., 0] == grey[..., 2]).all()

    turned = Image.new("RGB", (20, 30))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (30, 20)


@pytest.mark.parametrize(
    "mode, suffix", [("L", "png"), ("P", "png"), ("CMYK", "jpg"), ("1", "png")]
)
def test_other_modes(tmp_path, mode, suffix):
    path = tmp_path / f"picture.{suffix}"
    Image.new("RGB", (16, 16), (200, 30, 30)).convert(mode).save(path)
    image = load_image(path)
    assert image.mode == "RGB"
    if mode == "CMYK":
        assert np.abs(np.asarray(image).astype(int) - [200, 30, 30]).max() < 12


def test_of_an_animation_the_first_frame_is_taken_with_a_note(tmp_path):
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue", "green")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.warns(UserWarning, match=r"a\.gif: the first of 3 frames is taken"):
        image = load_image(tmp_path / "a.gif")
    assert image.getpixel((3, 3)) == (255, 0, 0)


def bad_files(folder):
    whole = folder / "whole.png"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(whole)
    (folder / "truncated.png").write_bytes(whole.read_bytes()[:3000])
    Image.fromarray(noise).save(folder / "whole.jpg")
    (folder / "truncated.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:1000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "paper.pdf").write_bytes(b"%PDF-1.7")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    Image.new("RGB", (1000, 9)).save(folder / "line.png")
    return {
        "truncated.png": "cannot be read as a picture",
        "truncated.jpg": "cannot be read as a picture",
        "empty.png": "the file is empty",
        "text.png": "none of AVIF, BMP, GIF, JPEG",
        "paper.pdf": "none of AVIF, BMP, GIF, JPEG",
        "dot.png": "1 x 1 pixels; at least 8",
        "line.png": "1000 x 9 pixels; .*100 times as long",
        "missing.png": "no such file",
    }


def test_bad_files_are_named_with_what_is_wrong(tmp_path):
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=f"{name}: .*{message}|{name}: {message}"):
            load_image(tmp_path / name)


def test_what_a_processor_imports_and_is_not_installed_is_named(monkeypatch):
    """As Gemma 4's wants torchvision before transformers 5.21."""

    class Transformers:
        def __getattr__(self, name):
            cause = ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
            raise ModuleNotFoundError(f"Could not import module {name!r}.") from cause

    monkeypatch.setattr(loading, "transformers", Transformers())
    with pytest.raises(ImportError, match="type 'llava' wants torchvision, which is not installed"):
        fopru.load("pocket")


@pytest.mark.parametrize(
    "name", ["https://example.com/cat.jpg", Path("https://example.com/cat.jpg"), "s3://a/b.png"]
)
def test_addresses_and_folders_are_not_read(name, tmp_path):
    with pytest.raises(ValueError, match="example.com/cat.jpg: addresses|b.png: addresses"):
        load_image(name)
    with pytest.raises(ValueError, match=f"{tmp_path}: is a folder"):
        load_image(tmp_path)


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif(tmp_path):
    Image.new("RGB", (32, 24), "red").save(tmp_path / "a.avif")
    assert load_image(str(tmp_path / "a.avif")).size == (32, 24)


def test_a_decompression_bomb(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    for limit in (80_000, 40_000):  # Pillow warns above the limit, and raises above its double
        monkeypatch.setattr(pictures.Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"bomb\.png: more than .* decompression bomb"):
            load_image(tmp_path / "bomb.png")


def test_a_transformers_that_is_too_old_is_named_at_import():
    with pytest.raises(ImportError, match=r"needs transformers 5\.19 or newer, and 5\.17\.0 is"):
        versions.check(Version("5.17.0"))
