import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny import image, model, processor

import fopru
from fopru.evaluation import statistics
from fopru.pocket.sampling import METRICS
from fopru.pocket.scenes import TASKS

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed: make lmms tests it")

from lmms_eval.api.instance import Instance
from lmms_eval.utils import load_yaml_config

from fopru.evaluation import lmms

ASKED = ("presence", "documents", "charts", "reading")  # one of each metric
RETENTION, LIMIT = 0.04, 7  # so few tokens that answers change; an odd number for two processes

OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def lmms_eval(out, *launch):
    """The table that lmms-eval prints."""
    env = {**os.environ, **OFFLINE, "HF_HOME": str(out / "hf"), "ACCELERATE_USE_CPU": "true"}
    options = {
        "--model": "fopru",
        "--model_args": f"pretrained=pocket,method=fopru,retention={RETENTION}",
        "--tasks": ",".join(f"pocketbench_{task}" for task in ASKED),
        "--include_path": str(lmms.TASKS),
        "--limit": str(LIMIT),
        "--batch_size": "4",
        "--output_path": str(out),
    }
    done = subprocess.run(
        [
            *(launch or [sys.executable]),
            "-m",
            "lmms_eval",
            "--log_samples",
            *sum(options.items(), ()),
        ],
        env={**env, "OMP_NUM_THREADS": "1"},
        cwd=out,
        capture_output=True,
        text=True,
    )
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert table, done.stdout[-4000:] + done.stderr[-4000:]
    return table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One process: the table, and the folder of what lmms-eval keeps."""
    out = tmp_path_factory.mktemp("lmms")
    return lmms_eval(out), out


@pytest.mark.slow
def test_answers_and_metrics_are_those_of_evaluate(run):
    _, out = run
    net, words = fopru.load("pocket")
    examples = [e for task in ASKED for e in fopru.pocket.benchmark(task=task)[:LIMIT]]
    found = fopru.evaluate(net, words, examples, ["fopru"], [RETENTION])
    full, pruned = (found[found.method == m].set_index("id") for m in ("full", "fopru"))
    assert (full.prediction != pruned.prediction).any()
    for task in ASKED:
        (file,) = out.rglob(f"*_samples_pocketbench_{task}.jsonl")
        lines = map(json.loads, file.read_text().splitlines())
        said = [line["filtered_resps"].lower() for line in lines]
        assert said == list(pruned.prediction[pruned.task == task])
    (file,) = out.rglob("*_results.json")
    results = json.loads(file.read_text())["results"]
    right = statistics.accuracy(pruned.reset_index()).set_index("task")["mean"]
    own = statistics.scores(pruned.reset_index()).set_index("task")
    for task in ASKED:
        cell = results[f"pocketbench_{task}"]
        assert cell["accuracy,none"] == pytest.approx(right[task])
        assert cell[f"{own.metric[task]},none"] == pytest.approx(own.score[task], nan_ok=True)


@pytest.mark.slow
def test_two_processes_give_the_same_table(run, tmp_path):
    accelerate = Path(sys.executable).with_name("accelerate")
    # `--cpu` would start one process only: `--multi_gpu` starts two, and the environment says CPU
    options = ["--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    assert lmms_eval(tmp_path, accelerate, "launch", *options) == run[0]
    ranks = [
        line["doc_id"] % 2
        for file in tmp_path.rglob("*_samples_*reading.jsonl")
        for line in map(json.loads, file.read_text().splitlines())
    ]
    assert ranks == [0] * 4 + [1] * 3  # each process answered every other question


def test_every_task_has_its_file_and_its_metric():
    group = load_yaml_config(str(lmms.TASKS / "pocketbench.yaml"))
    assert group["task"] == [f"pocketbench_{task}" for task in TASKS]
    for task in TASKS:
        config = load_yaml_config(str(lmms.TASKS / f"pocketbench_{task}.yaml"))
        assert config["task"] == f"pocketbench_{task}"
        assert config["dataset_kwargs"]["filters"] == [["task", "==", task]]
        own = [METRICS[task]] if task in METRICS else []
        assert [m["metric"] for m in config["metric_list"]] == ["accuracy", *own]


def requests_on(wrapper, documents, **settings):
    """Requests as lmms-eval makes them of (pictures, text) pairs."""
    wrapper.task_dict["mine"] = {"test": documents}

    def messages(document):
        pictures = [{"type": "image", "url": picture} for picture in document[0]]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": document[1]}]}]

    settings = {"max_new_tokens": 5, **settings}
    for i, (_, text) in enumerate(documents):
        about = {"task": "mine", "doc_id": i, "repeats": 1}
        arguments = (text, messages, settings, i, "mine", "test")
        yield Instance("generate_until", arguments, idx=0, metadata=about)


@pytest.fixture
def folder(tmp_path, family):
    model(family).save_pretrained(tmp_path)
    processor(family).save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@pytest.mark.parametrize("method", ["full", "fopru", "divprune", "fastv"])
def test_any_family_and_method_through_the_processors_chat_template(folder, family, method):
    documents = [
        ([image(seed=0)], "w1"),
        ([image(64, 40, seed=1)], "w2 w3 w4 w5"),
        ([image(seed=2), image(seed=3)], "w6 w7"),
    ]
    arguments = {} if method == "full" else {"retention": 0.3}
    arguments = {"tokens": 20} if method == "divprune" else arguments
    wrapper = lmms.PrunedModel(folder, method, **arguments, device="cpu", batch_size=2)
    said = wrapper.generate_until(list(requests_on(wrapper, documents)))
    net, words = fopru.load(folder)
    pruner = fopru.Random(1.0) if method == "full" else fopru.METHODS[method](**arguments)
    for (pictures, text), answer in zip(documents, said, strict=True):
        prompt = "USER: " + "<image> " * len(pictures) + text + " ASSISTANT:"
        asked = words(images=pictures, text=prompt, return_tensors="pt")
        with pruner(net):
            out = net.generate(**asked, max_new_tokens=5, do_sample=False)
        new = out[0, asked["input_ids"].shape[1] :]
        assert answer == words.decode(new, skip_special_tokens=True).strip() != ""
    assert "generate" not in vars(wrapper.model)  # the model is as it was


@pytest.mark.parametrize("family", ["llava"])
def test_questions_without_a_picture_beside_others(folder, family):
    documents = [([], "w1 w2"), ([image()], "w3")]
    answers = []
    for size in (1, 2):
        wrapper = lmms.PrunedModel(folder, retention=0.3, device="cpu", batch_size=size)
        answers.append(wrapper.generate_until(list(requests_on(wrapper, documents))))
    assert answers[0] == answers[1] and all(answers[0])


@pytest.mark.parametrize("family", ["llava"])
def test_a_tasks_own_settings(folder, family):
    wrapper = lmms.PrunedModel(folder, dtype="bfloat16", device="cpu", max_new_tokens=3)
    assert wrapper.model.dtype == torch.bfloat16 and wrapper.device.type == "cpu"
    ask = [([image()], "w1 w2")]
    (long,) = wrapper.generate_until(list(requests_on(wrapper, ask)))
    assert len(long.split()) == 5
    (default,) = wrapper.generate_until(list(requests_on(wrapper, ask, max_new_tokens=None)))
    assert default.split() == long.split()[:3]
    stop = long.split()[2]
    (cut,) = wrapper.generate_until(list(requests_on(wrapper, ask, until=["\n\n", stop])))
    assert cut == long.split(stop)[0].strip()
    sampled = requests_on(wrapper, ask * 8, temperature=5.0, top_p=1.0)
    assert len(set(wrapper.generate_until(list(sampled)))) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "foprus"}, "method='foprus'.*Did you mean 'fopru'"),
        ({"retention": 1.5}, "retention=1.5: must be a number in"),
        ({"positions": "keep"}, "positions='keep'"),
        ({"retnetion": 0.5}, "model_args='retnetion'.*Did you mean 'retention'"),
        ({"method": "full", "retention": 0.5}, "retention: method 'full' prunes nothing"),
        ({"tokens": 0}, "tokens=0"),
        ({"batch_size": "auto"}, "batch_size='auto': must be an integer"),
    ],
)
def test_bad_arguments_are_refused_before_a_model_is_loaded(arguments, message):
    with pytest.raises(ValueError, match=message):
        lmms.PrunedModel("there/is/none", **arguments)


def test_one_model_is_not_spread_by_several_processes(monkeypatch):
    processes = SimpleNamespace(process_index=0, num_processes=2)
    monkeypatch.setattr(lmms, "launched", lambda: processes)
    with pytest.raises(ValueError, match="device_map='auto': each of 2 processes has a device"):
        lmms.PrunedModel(device_map="auto")


@pytest.mark.parametrize("family", ["llava"])
def test_what_is_no_picture_is_refused(folder, family):
    wrapper = lmms.PrunedModel(folder, device="cpu")
    (request,) = requests_on(wrapper, [([], "w1")])
    film = [{"role": "user", "content": [{"type": "video", "url": "film.mp4"}]}]
    request.arguments = (*request.args[:1], lambda document: film, *request.args[2:])
    with pytest.raises(ValueError, match="'mine' has video: fopru takes pictures only"):
        wrapper.generate_until([request])
    for refused in (wrapper.loglikelihood, wrapper.generate_until_multi_round):
        with pytest.raises(NotImplementedError, match="fopru"):
            refused([request])


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)


def test_fopru_itself_does_not_import_lmms_eval():
    python("import sys, fopru.cli, fopru.evaluation; assert 'lmms_eval' not in sys.modules")


def test_lmms_eval_finds_the_model_whichever_is_imported_first():
    found = "from lmms_eval.models import get_model; assert get_model('fopru').__name__"
    for first in ("import fopru.evaluation.lmms", "import lmms_eval.models"):
        assert "WARNING" not in python(f"{first}; {found} == 'PrunedModel'").stderr
