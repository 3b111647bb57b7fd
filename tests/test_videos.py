"""Videos as users have them: read, evaluated question by question, asked from the command line."""

import json
from dataclasses import replace

import folders
import numpy as np
import pytest
import tiny
import transformers.utils
import transformers.video_utils
import zoo
from PIL import Image
from test_evaluation_families import by_hand
from transformers.utils import is_torchvision_available
from transformers.video_utils import VideoMetadata
from typer.testing import CliRunner

import fopru
from fopru.cli import answering, app
from fopru.evaluation import Example, answer, evaluate, read_jsonl, read_rows
from fopru.evaluation.controls import Later

METHODS = {
    "full": fopru.Random(1.0),
    "clip": fopru.FoPru(0.6, per="clip"),
    "evs": fopru.EVS(0.6),
    "weighted": fopru.FoPru(0.6, weights="mass"),
    "fastv": fopru.FastV(0.6),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    made = {}

    def of(family):
        if family not in made:
            model, processor = fopru.load(folders.save(family, tmp_path_factory.mktemp(family)))
            if family in zoo.VIDEO:
                processor.video_processor = folders.Videos(family)
            made[family] = model, processor
        return made[family]

    return of


def film(seed, n=4, **options):
    return fopru.Video([tiny.image(60, 40, 10 * seed + i) for i in range(n)], **options)


def examples():
    """Two videos of other lengths with two questions each, and a picture with one."""
    one, other = film(1, fps=2.0), film(2, 6, fps=2.5)
    shown = [one, one, other, other, tiny.image(60, 40)]
    return [
        Example(
            f"q{i}",
            "t",
            one,
            " ".join(f"w{i + j}" for j in range(1 + i)),
            ("w20", "w21 w7")[i % 2],
            evidence=((0, 0, 30, 20),),
            scene={"image_id": str(i // 2)},
        )
        for i, one in enumerate(shown)
    ]


# Evaluation


@pytest.mark.parametrize("family", zoo.VIDEO)
def test_questions_on_videos_are_each_by_itself(family, loaded):
    model, processor = loaded(family)
    asked = examples()[:2]
    methods = {name: pruner for name, pruner in METHODS.items() if name != "full"}
    found = evaluate(model, processor, asked, methods, (0.6,), max_new_tokens=2)
    assert len(found) == 2 * len(METHODS) and set(found.modality) == {"video"}
    assert found.error.isna().all() and (found.evidence > 0).all()
    for name, pruner in METHODS.items():
        (row,) = found[(found.id == "q1") & (found.method == name)].to_dict("records")
        loglik, kept = by_hand(model, processor, pruner, asked[1])
        assert row["loglik"] == pytest.approx(loglik, abs=1e-3), name
        assert row["kept"] == kept


def test_pictures_and_videos_in_one_benchmark_row_by_row(loaded):
    model, processor = loaded("qwen2_5_vl")
    asked = examples()[::-1]
    told = dict(retentions=(0.5,), max_new_tokens=2, blind=("grey",))
    together = evaluate(model, processor, asked, ["fopru"], **told)
    assert together.id.drop_duplicates().tolist() == [e.id for e in asked]
    assert together.modality[together.id == "q4"].unique().tolist() == ["image"]
    for e in (asked[0], asked[2]):
        alone = evaluate(model, processor, [e], ["fopru"], **told)
        row = together[together.id == e.id].reset_index(drop=True)
        np.testing.assert_allclose(row.loglik, alone.loglik, atol=1e-4)
        assert row.kept.tolist() == alone.kept.tolist()
    said = list(answer(model, processor, asked, max_new_tokens=2))
    assert said == together[together.method == "full"].prediction.tolist()


def test_the_pace_of_a_video_reaches_the_model_and_the_key_of_its_rows(loaded, tmp_path):
    model, processor = loaded("qwen2_5_vl")
    told = dict(retentions=(0.5,), max_new_tokens=2, out=tmp_path / "rows.sqlite")
    e, frames = examples()[0], examples()[0].image.frames
    clips = [film(1, fps=2.0), film(1, fps=0.1), fopru.Video(frames[::-1], fps=2.0)]
    rows = [
        evaluate(model, processor, [replace(e, image=clip)], ["fopru"], **told) for clip in clips
    ]
    assert len({row.loglik[0] for row in rows}) == 3
    again = evaluate(model, processor, [replace(e, image=film(1, fps=2.0))], ["fopru"], **told)
    assert again.loglik.tolist() == rows[0].loglik.tolist()


def test_controls_on_videos(loaded):
    model, processor = loaded("llava_onevision")
    asked = examples()[:4]
    methods = ["oracle", Later(fopru.CDPruner())]
    found = evaluate(
        model, processor, asked, methods, (0.5,), seeds=[0], blind=["swapped"], max_new_tokens=2
    )
    by = found.set_index(["id", "method"])
    assert by.tokens["q0", "full"] == by.tokens["q2", "swapped"] == 4 * 16 + 1
    assert by.tokens["q2", "full"] == by.tokens["q0", "swapped"] == 6 * 16 + 1
    assert (found[found.method == "oracle"].found == 1).all()
    with pytest.raises(ValueError, match="task 't' has one video only"):
        evaluate(model, processor, asked[:2], ["fopru"], (0.5,), blind=["swapped"])


def test_what_cannot_be_evaluated_is_refused_before_anything_is_computed(loaded, tmp_path):
    model, processor = loaded("llava")
    with pytest.raises(fopru.UnsupportedModelError, match="hold videos; .* LLaVA-OneVision"):
        evaluate(model, processor, examples()[:1])
    model, processor = loaded("qwen2_vl")
    for method in ("evs", fopru.FoPru(per="clip")):
        with pytest.raises(ValueError, match="takes videos, and question 'q4' is about a picture"):
            evaluate(model, processor, examples(), [method])
    broken = Example("q", "t", fopru.Video(tmp_path / "none"), "w1", "w2")
    found = evaluate(model, processor, [broken], ["fopru"], (0.5,))
    assert found.modality.tolist() == ["video"] * 2
    assert found.error.str.endswith("none: no such file or folder.").all()
    for bad in ([], ["a.png"], np.zeros((2, 8, 8, 3)), [tiny.image(8, 8), tiny.image(9, 8)]):
        with pytest.raises(ValueError, match="video: |video=|frames of 2 sizes"):
            replace(broken, image=bad)


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed here")
def test_without_torchvision_one_sentence_says_so(tmp_path):
    model, processor = fopru.load(folders.save("qwen2_vl", tmp_path))
    with pytest.raises(ImportError, match="videos need torchvision"):
        evaluate(model, processor, examples()[:1])


# Reading


def test_frames_in_a_folder_are_taken_in_the_order_of_their_numbers(tmp_path):
    (tmp_path / "notes.txt").write_text("no frame")
    for i in range(12):
        Image.new("RGB", (16, 12), (20 * i, 0, 0)).save(tmp_path / f"frame{i}.png")

    def reds(**options):
        return [f.getpixel((0, 0))[0] // 20 for f in fopru.Video(tmp_path, **options).read().frames]

    assert reds() == list(range(12))
    assert reds(n_frames=3) == [2, 6, 10] and reds(n_frames=50) == list(range(12))
    assert fopru.Video(tmp_path, fps=4, n_frames=3).read().fps == 1
    assert fopru.Video(tmp_path).read().fps is None
    Image.new("RGB", (20, 12)).save(tmp_path / "frame9.png")
    with pytest.raises(ValueError, match="frames of 2 sizes; all must be of one size"):
        reds()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations_are_read_with_their_pace(tmp_path, suffix):
    frames = [Image.new("RGB", (16, 12), (50 * i, 0, 0)) for i in range(4)]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=250, lossless=True)
    video = fopru.Video(path, n_frames=2).read()
    assert [frame.getpixel((3, 3))[0] for frame in video.frames] == [50, 150]
    assert video.fps == pytest.approx(2) and video.frames[0].mode == "RGB"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"a.{suffix}: cannot be read"):
        fopru.Video(path).read()


def test_films_are_read_by_transformers(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"film")

    def read(file, backend, sample_indices_fn):
        assert (file, backend) == (str(path), "pyav")
        told = VideoMetadata(total_num_frames=40, fps=20.0)
        places = sample_indices_fn(metadata=told)
        return np.stack([np.full((12, 16, 3), i, np.uint8) for i in places]), told

    monkeypatch.setattr(transformers.utils, "is_av_available", lambda: False)
    with pytest.raises(ImportError, match="a.mp4: films are read with PyAV.*pip install av"):
        fopru.Video(path).read()
    monkeypatch.setattr(transformers.utils, "is_av_available", lambda: True)
    monkeypatch.setattr(transformers.video_utils, "load_video", read)
    video = fopru.Video(path, n_frames=4).read()
    assert [frame.getpixel((0, 0))[0] for frame in video.frames] == [5, 15, 25, 35]
    assert video.fps == 2


def test_questions_about_videos_in_a_file_and_in_rows(tmp_path):
    (tmp_path / "clip").mkdir()
    for i in range(3):
        tiny.image(seed=i).save(tmp_path / "clip" / f"{i}.png")
    tiny.image().save(tmp_path / "a.png")
    lines = [
        {"video": "clip", "question": "w1", "answer": "w2"},
        {"video": "clip", "question": "w3", "answer": "w4"},
        {"video": "clip", "n_frames": 2, "fps": 3, "image_id": 2, "question": "w", "answer": "w"},
        {"image": "a.png", "question": "w5", "answer": "w6"},
    ]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, lines)))
    first, second, fewer, picture = read_jsonl(tmp_path / "q.jsonl")
    assert first.image is second.image and len(first.image.read().frames) == 3
    assert len(fewer.image.read().frames) == 2 and fewer.image.read().fps == 2
    assert [e.modality for e in (second, fewer, picture)] == ["video", "video", "image"]
    frames = [tiny.image(seed=i) for i in range(2)]
    row = {"video": frames, "question": "w1", "answer": "w2", "image_id": "v"}
    array = np.stack([np.asarray(frame) for frame in frames])
    one, other = read_rows([row, {**row, "video": array}])
    assert one.image is other.image and one.image.frames[1].tobytes() == array[1].tobytes()
    with pytest.raises(ValueError, match="row 1: field 'image_id' is 'v' .* another picture"):
        read_rows([row, {**row, "video": frames[:1]}])
    with pytest.raises(ValueError, match="row 1: field 'image_id' is '.*clip' .* another picture"):
        clip = {"video": tmp_path / "clip", "question": "w1", "answer": "w2"}
        read_rows([clip, {**clip, "n_frames": 2}])
    with pytest.raises(ValueError, match="row 0: there are fields 'image' and 'video'"):
        read_rows([{**row, "image": frames[0]}])
    with pytest.raises(ValueError, match="fps=0: must be a number above 0"):
        fopru.Video(frames, fps=0)


# The command line


@pytest.fixture
def ask(loaded, monkeypatch):
    def run(family, *arguments):
        monkeypatch.setattr(answering, "load", lambda name: loaded(family))
        told = [*arguments, "--model", "a/b", "--max-new-tokens", "2", "--json"]
        return CliRunner().invoke(app, ["ask", *map(str, told)])

    return run


def test_a_video_and_several_pictures_can_be_asked(ask, tmp_path):
    pictures = [tmp_path / f"{i}.png" for i in range(4)]
    for i, path in enumerate(pictures):
        tiny.image(60, 40, i).save(path)
    for family in ("llava_onevision", "qwen3_vl"):
        result = ask(family, "w1 w2", "--video", tmp_path, "--method", "evs", "--retention", 0.6)
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found["images"] == [] and found["video"] == str(tmp_path)
        assert 0 < found["pruned"]["visual_tokens"] < found["full"]["visual_tokens"]
    fewer = json.loads(ask(family, "w1", "--video", tmp_path, "--frames", 2).stdout)
    assert fewer["full"]["visual_tokens"] == found["full"]["visual_tokens"] / 2
    for family in ("llava", "internvl"):
        one, two = (
            json.loads(ask(family, *pictures[:n], "w1").stdout)["full"]["visual_tokens"]
            for n in (1, 2)
        )
        assert two == 2 * one


def test_what_cannot_be_asked_ends_with_one_sentence(ask, tmp_path):
    path = tmp_path / "a.png"
    tiny.image(60, 40).save(path)
    for family, arguments, words in (
        ("llava", ("w1", "--video", path), "hold videos; they can be pruned for"),
        ("qwen2_vl", (path, "w1", "--method", "evs"), "this is a picture"),
        ("qwen2_vl", ("w1", "--video", tmp_path / "no"), "no such file or folder"),
        ("qwen2_vl", ("w1", "--video", path, "--frames", 0), "n_frames=0"),
        ("qwen2_vl", ("<|video_pad|> w1", "--video", path), "<|video_pad|> stands for"),
        ("qwen2_vl", (path, "w1", "--video", path), "and not both"),
        ("qwen2_vl", ("w1",), "give picture files"),
        ("qwen2_vl", (path, path, "w1", "--overlay", tmp_path / "o.png"), "drawn for one picture"),
    ):
        result = ask(family, *arguments)
        assert result.exit_code == 2 and result.stdout == "", result.output
        assert words in result.stderr and len(result.stderr.strip().splitlines()) == 1
