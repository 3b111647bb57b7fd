"""What is counted is counted right; no time is asserted."""

import pandas as pd
import pytest
import tiny
import torch
import zoo
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

import fopru
from fopru import efficiency
from fopru.efficiency import Latency, Machine, measuring, shapes
from fopru.families import Family


def asked(batch=2):
    return tiny.inputs(
        images=[tiny.image(seed=i) for i in range(batch)], texts=["<image> w1 w2"] * batch
    )


@pytest.fixture(scope="module")
def table():
    pruners = [fopru.FoPru(0.25), fopru.FoPru(0.5), fopru.METHODS["fastv"](0.25)]
    return fopru.measure(tiny.model(), asked(), pruners, new_tokens=3, turns=2)


def test_every_way_has_its_stages(table):
    stages = table.groupby(["method", "retention"]).stage.agg(set)
    assert stages["full", 1.0] == {"vision", "prefill", "decode", "end to end"}
    assert stages["fopru", 0.25] == {*efficiency.STAGES, "end to end", "native prefill"}
    inside = {"vision", "scoring", "compaction", "prefill", "decode", "end to end"}
    assert stages["fastv", 0.25] == inside
    assert (table.seconds > 0).all()
    assert ((table.low <= table.seconds) & (table.seconds <= table.high)).all()
    assert table.attrs["turns"] == 2 and table.attrs["threads"] == torch.get_num_threads()


def test_tokens_and_cache_are_counted(table):
    by = table[table.stage == "prefill"].set_index(["method", "retention"])
    assert by.visual.to_dict() == {
        ("full", 1.0): 64,
        ("fopru", 0.25): 16,
        ("fopru", 0.5): 32,
        ("fastv", 0.25): round((64 * 2 + 16) / 3),  # the mean over three layers
    }
    prompt = asked()["input_ids"].shape[1]
    assert by.tokens["fopru", 0.25] == prompt - 48
    # keys and values, 3 layers, 2 heads of 12, float32, for the prompt and the tokens fed back
    for (method, retention), removed in {("full", 1.0): 0, ("fopru", 0.25): 48}.items():
        length = prompt - removed + 2
        assert by.kv_bytes[method, retention] == 2 * 2 * 3 * 2 * 12 * 4 * length
    assert by.kv_bytes["fastv", 0.25] < by.kv_bytes["full", 1.0]


def test_flops_of_a_prefill_by_hand():
    """Matrix products of a Llama, two operations for each multiplication and addition."""
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
    )
    model, length = LlamaForCausalLM(config).eval(), 7
    counter = measuring.Counter()
    with torch.no_grad():
        counter("prefill", lambda: model(input_ids=torch.ones(1, length).long(), logits_to_keep=1))
    d, head = 32, 8
    projections = d * d + 2 * d * (2 * head) + d * d  # q, k and v, o
    layer = length * (projections + 3 * d * 80) + 4 * 2 * length * length * head  # q.k and a.v
    assert counter.flops["prefill"] == 2 * (2 * layer + d * 50)


def test_weighted_tokens_are_measured_with_their_weights():
    model, masks = tiny.model(), []
    layer = model.model.language_model.layers[0]
    layer.register_forward_pre_hook(
        lambda layer, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    fopru.measure(model, asked(1), [fopru.FoPru(0.25, weights="mass")], 3, turns=1)
    biased = [m for m in masks if m is not None and m.dtype == torch.float32 and m.max() > 0]
    # prefill and two steps: counted, by stages, end to end; the native prefill has no weights
    assert len(biased) == 9
    text = asked(1)["input_ids"].shape[1] - 64
    for mask, steps in zip(biased, (0, 1, 2) * 3, strict=True):
        assert round(mask[0, 0, -1].exp().sum().item()) == 64 + text + steps


@pytest.mark.parametrize("family", zoo.FAMILIES)
def test_every_family_is_measured(family):
    model, inputs = (
        zoo.model(family),
        zoo.inputs(family, [tiny.image(64, 48)], "USER: <image> w1 ASSISTANT:"),
    )
    pruners = [fopru.FoPru(0.5), fopru.METHODS["fastv"](0.5, k_layer=2), fopru.CLS(tokens=8)]
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    table = fopru.measure(model, inputs, pruners, 3, turns=1).set_index(["method", "stage"])
    assert set(table.index.levels[0]) == {"full", "fopru", "fastv", "cls"}
    few, pictures = table.loc["cls", "prefill"], Family.of(model).grids(inputs)
    assert few.budget == 8 and few.visual == 8 * len(pictures)  # of each tile, where it is one
    assert few.visual == pytest.approx(few.retention * table.loc["full", "prefill"].visual)
    assert few.attention == ("cls" if family in zoo.CLS else "received")
    full, fewer = table.loc["full", "prefill"], table.loc["fopru", "prefill"]
    assert full.tokens == inputs["input_ids"].shape[1] and fewer.tokens < full.tokens
    assert fewer.flops < full.flops and table.loc["fastv", "prefill"].flops < full.flops
    assert out.shape[1] == full.tokens + 3


def test_turns_go_forth_and_back(monkeypatch):
    order = []
    turn = measuring.Way.take_turn

    def noted(self):
        order.append(None if self.pruner is None else self.pruner.retention)
        turn(self)

    monkeypatch.setattr(measuring.Way, "take_turn", noted)
    fopru.measure(tiny.model(), asked(1), [fopru.FoPru(0.5), fopru.FoPru(0.2)], 1, turns=3)
    there, back = [None, 0.5, 0.2], [0.2, 0.5, None]
    assert order == [*there, *back, *there]


def test_the_model_is_left_as_it_was():
    model, inputs = tiny.model(), asked()
    before = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    fopru.measure(model, inputs, [fopru.FoPru(0.5), fopru.METHODS["fastv"](0.5)], 2, turns=1)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(model.generate(**inputs, max_new_tokens=4, do_sample=False), before)


def test_weighted_and_plain_pruners_stay_apart_and_may_be_named():
    both = [fopru.FoPru(0.5), fopru.FoPru(0.5, weights="mass"), fopru.FoPru(tokens=3)]
    table = fopru.measure(tiny.model(), asked(1), both, 1, turns=1)
    assert list(table.method.unique()) == ["full", "fopru", "fopru-mass"]
    budgets = table[table.stage == "vision"].set_index(["method", "retention"])["budget"]
    assert budgets.dropna().to_dict() == {("fopru", 3 / 64): 3}
    table = fopru.measure(tiny.model(), asked(1), {"mine": both[0]}, 1, turns=1)
    assert list(table.method.unique()) == ["full", "mine"]


@pytest.mark.parametrize("pruners", [fopru.FoPru(0.5), "fopru", ["fopru"]])
def test_what_are_no_pruners_is_refused(pruners):
    with pytest.raises(ValueError, match="pruners"):
        fopru.measure(tiny.model(), asked(1), pruners)


@pytest.mark.parametrize("argument", ["new_tokens", "turns"])
def test_counts_below_one_are_refused(argument):
    with pytest.raises(ValueError, match=f"{argument}=0: must be an integer of at least 1"):
        fopru.measure(tiny.model(), asked(), [], **{argument: 0})


# Prediction


def made_up(one=1.0, linear=0.02, square=0.0001, base=0.5, slope=0.001, text=12, batch=1):
    """A table whose seconds follow the model of `Latency` exactly."""
    rows = []
    for method, retention, visual in [
        ("full", 1.0, 200),
        *(("fopru", r, int(200 * r)) for r in (0.1, 0.25, 0.5, 0.75)),
    ]:
        length = visual + text
        seconds = {
            "vision": 3.0 if method == "full" else 2.9,
            "prefill": one + linear * length + square * length**2,
            "decode": base + slope * length,
        }
        if method == "fopru":
            seconds |= {"scoring": 0.2, "selection": 0.001 * visual, "compaction": 0.1}
            seconds |= {"native prefill": seconds["prefill"]}
        for stage, value in seconds.items():
            rows.append((method, retention, visual, length, stage, value, batch))
    names = ["method", "retention", "visual", "tokens", "stage", "seconds", "batch"]
    return pd.DataFrame(rows, columns=names)


def test_latency_is_what_the_stages_add_up_to():
    latency = Latency.fit(made_up())
    length, answer = 150 + 30, 5
    prefill = 1 + 0.02 * length + 0.0001 * length**2
    decode = sum(0.5 + 0.001 * (length + i) for i in range(answer - 1))
    assert latency(150, 30, answer) == pytest.approx(3 + prefill + decode)
    overhead = 0.2 + 0.15 + 0.1 - 0.1  # the tower is 0.1 faster
    assert latency(150, 30, answer, "fopru") == pytest.approx(3 + overhead + prefill + decode)
    whole = prefill - 0.02 * 150 - 0.0001 * 150**2
    assert latency(150, 30, answer, "fopru", cached=True) == pytest.approx(whole + decode)


def test_a_longer_cache_never_makes_a_step_faster():
    latency = Latency.fit(made_up(slope=-0.0001))
    assert latency.decode[1] == 0
    assert latency(200, 20, 100) > latency(100, 20, 100)


def test_pruning_loses_where_it_keeps_nearly_everything_of_little():
    latency = Latency.fit(made_up())
    assert latency.saved(200, 20, 12, 5, "fopru") > 0.1
    assert latency.saved(8, 8, 12, 1, "fopru") < 0


def test_a_latency_asks_for_what_it_needs():
    table = made_up()
    with pytest.raises(ValueError, match=r"batch sizes \[1, 2\]"):
        Latency.fit(pd.concat([table, made_up(batch=2)]))
    with pytest.raises(ValueError, match="prompts of 2 lengths"):
        Latency.fit(table[table.retention.isin((1.0, 0.5))])
    with pytest.raises(ValueError, match="method='row': measured were full, fopru"):
        Latency.fit(table)(100, 10, 3, "row")
    with pytest.raises(ValueError, match="answer=0"):
        Latency.fit(table)(100, 10, 0)


def test_the_roofline_is_the_longer_of_two_bounds():
    layer = torch.nn.Linear(10, 10, bias=False)  # 400 bytes
    machine = Machine(bytes_per_s=100, flops_per_s=50)
    assert efficiency.roofline(machine, layer, flops=100, kv_bytes=600) == 10
    assert efficiency.roofline(machine, layer, flops=1000, kv_bytes=600) == 20


# True shapes


def parameters(shape):
    return sum(p.numel() for p in efficiency.empty(shape).parameters())


def test_shapes_have_the_published_numbers_of_parameters():
    """In billions."""
    assert {shape: round(parameters(shape) / 1e9, 2) for shape in efficiency.SHAPES} == {
        "gemma-4-12b": 11.96,
        "llava-1.5-7b": 7.06,
        "llava-1.5-13b": 13.35,
        "llava-next-7b": 7.06,
        "qwen2.5-vl-7b": 8.29,
        "qwen3-vl-8b": 8.77,
        "qwen3.5-9b": 9.41,
    }


@pytest.mark.parametrize(
    "shape, visual",
    [
        ("gemma-4-12b", 256),
        ("llava-1.5-7b", 576),
        ("llava-next-7b", 2928),
        ("qwen2.5-vl-7b", 1296),
        ("qwen3-vl-8b", 1024),
        ("qwen3.5-9b", 1024),
    ],
)
def test_prompts_have_the_placeholders_of_their_picture(shape, visual):
    model = efficiency.empty(shape)
    inputs = efficiency.prompt(model, text=30, batch=2)
    assert (inputs["input_ids"] == model.config.image_token_id).sum(1).tolist() == [visual] * 2
    assert inputs["input_ids"].shape == (2, visual + 30)


def test_a_model_is_built_tensor_by_tensor(monkeypatch):
    config = AutoConfig.for_model(**tiny.configs("llava").to_dict())
    monkeypatch.setattr(shapes, "config", lambda shape: config)
    model = efficiency.build("llava-1.5-7b")
    assert not any(p.is_meta for p in [*model.parameters(), *model.buffers()])
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    norm = model.model.language_model.norm
    assert (norm.weight == 1).all()
    pruned = fopru.FoPru(0.25).prune(model, asked())
    assert model(**pruned).logits.isfinite().all()


def test_memory_is_asked_for_before_it_is_taken(monkeypatch):
    monkeypatch.setattr(shapes, "memory", lambda model, device: (30 * 10**9, 10**9))
    with pytest.raises(ValueError, match=r"needs about 30\.0 GB on cpu, and 1\.0 GB are available"):
        efficiency.build("llava-1.5-13b")


def test_unknown_shapes_and_absent_devices():
    with pytest.raises(ValueError, match=r"shape='llava-7b': must be one of .*'llava-1.5-7b'"):
        efficiency.empty("llava-7b")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="device='cuda': there is no CUDA device here"):
            efficiency.build("llava-1.5-7b", device="cuda")
