import sys; sys.path.insert(0,'/work/brief')
from nbedit import edit, swap
p='notebooks/model_and_benchmark.ipynb'
swap(p,[("from making.recipe import SHIPPED","from making.recipe import Recipe\n\nrecipe = Recipe()")])
edit(p,{
'm06':'''## How it was trained

Training starts from random weights, on freshly drawn scenes. Table M.2 has the stages.

- **"tower"** teaches the vision tower alone, by the *dense labels* of the next section.
- **"answers"** teaches all weights from answers. Each question sees the picture and itself only.
- **Sparse scenes** come first: fewer things, signs and bars, and receipts whose prices stand near their items. With all prices in one far column, an earlier trial took several more stages to learn which price belongs to which item.
- **No visual token is ever dropped in training.** FoPru needs no training, and a model trained on pruned prompts would prove nothing about it.''',
'm07':'''stages = pd.DataFrame([asdict(stage) for stage in recipe.stages])
stages["pictures"] = stages.steps * stages.batch
plain = {"lr": "learning rate", "warmup": "warm-up", "few": "sparse scenes"}
stages.rename(columns=plain).style.hide().format(
    "{:g}", subset=["learning rate", "decay", "sparse scenes"]
).format("{:,}", subset=["steps", "pictures"]).set_caption(
    "Table M.2. The recipe of the pocket model, stage by stage. Sparse "
    "scenes: the share of scenes with less on them than those of the "
    "benchmark. Three trainings follow it, from three seeds."
)''',
'm09':'''log = pd.read_csv(data / "results" / "pocket" / "log.csv")
plots.show(
    plots.training(log),
    "Figure M.1. Training of the shipped model: losses (running means, left) "
    "and exact match on 64 fresh questions a task (right), over steps. The "
    "tower's loss rises where crowded scenes end and the learning rate goes "
    "up again. One training of three.",
)''',
'm10':None,'m11':None,'m13':None,
'm12':'''end = int(stages.steps.sum())
assert log["step"].max() == end and len(stages) == 3
assert not recipe.captions''',
'm13a':'''## What was planted: a word for every patch

The dense labels give each patch up to two words of the vocabulary, its name and its colour:''',
'm14':'''for slot in recipe.slots:
    print(textwrap.fill(f"{slot}: {' '.join(targets.SLOTS[slot])}", 76))''',
'm15':'''`##4` is a 4 that ends a number. A patch gets the words of the mark that covers most of it, if that is at least a fifth of the patch. A patch that no mark touches is named "nothing". Exactly these marks get these words:

| patches of | name | colour |
|---|---|---|
| a thing | its shape | its colour |
| a digit on a sign | the digit | the colour of the board |
| an item on a receipt | the item | |
| a digit of a price | the digit | |
| a box of a diagram | its letter | |
| an arrow, its head | "arrow", "point" | |
| a bar | "bar" | its colour |
| a digit above a bar | the digit | the bar's colour |
| everything else | "nothing" | |

So a patch is told what lies under it, and no more (Figure M.2). No label says which price belongs to an item, where an arrow leads, how many things there are, or which bar is highest. (The first training, which chapter 6 keeps, was told such answers.)''',
'm16':'''def told(scene):
    """For each patch the words that it was told."""
    slots = recipe.slots
    labels = targets.patch_labels(scene, processor.patch_size, slots)
    found = [[] for _ in range(labels.shape[1])]  # labels: (slots, P)
    for slot, label in zip(slots, labels, strict=True):
        for patch in np.flatnonzero(label != targets.IGNORE):
            found[patch].append(targets.SLOTS[slot][label[patch]])
    return found''',
'm21':'''To this decoder a visual token is a word, and pruning a picture strikes words from a list.''',
'm21p':'''**A test.** Is the price of an item written anywhere but on its digits? If it were, a question for the price would survive the loss of the digits. So take away all patches under the digits of the price, or under the item's word, or twenty at random (always twenty patches, the others at random), and ask for the price.

<details class="predict"><summary>No patch of the price's digits is left. Does the model still know the price?</summary>

No. Table M.4: without the digits the price is gone. Without the item's word the model has lost the row, and knows fewer prices than with twenty random patches gone.

</details>''',
'm21e':'''asked_for = fopru.pocket.benchmark("test", "documents")
prices = [e for e in asked_for if e.scene["variant"] == "price"][:50]
gone = {"the digits": slice(1, 2), "the word": slice(0, 1), "none of both": 0}
known = {}
for what, part in gone.items():
    evidence = [e.evidence[part] if part else () for e in prices]
    pairs = zip(prices, evidence, strict=True)
    some = [replace(e, evidence=boxes) for e, boxes in pairs]
    method = {"without": Without()}
    few = [236 / 256]
    found = fopru.evaluate(model, processor, some, method, few, seeds=[0])
    found = found[found.method == "without"]
    assert not part or not found.found.any()  # nothing of it was kept
    known[what] = 100 * found.choice.mean()
table = pd.DataFrame(known.items(), columns=["gone", "price known (%)"])
table.style.hide().format(precision=0).set_caption(
    "Table M.4. What the pocket model knows of 50 prices on 50 receipts when "
    "the patches of a part of the evidence are gone."
)''',
'm21c':'''So nothing stands in for the digits: the evidence is where the boxes of the benchmark say it is.''',
'm21b':'''assert known["the digits"] < 15
assert known["the digits"] < known["the word"] < known["none of both"]''',
'm21g':'''## Which findings are planted

| finding of this book | planted? |
|---|---|
| Attention finds the evidence ([3](03_attention_significance.ipynb)) | **Yes**, in part: the labels teach that block where things are, and not what a question is about. |
| The block whose output is used is the one to score (3) | **Yes**, in part: the labels act on that block's output. |
| Neighbours are duplicates; one of two can go ([7](07_redundancy.ipynb)) | **Yes.** All patches of a thing were told the same words. |
| A digit is named by each of its patches ([7](07_redundancy.ipynb)) | **Yes.** But a number needs all of its digits. |
| The decoder runs on when the background is gone ([6](06_known_and_said.ipynb)) | That is the first training. Table M.7 looks for the cause. |
| Pruning to a quarter costs most in counting, and weights mend it ([8](08_accuracy_against_retention.ipynb)) | No. No label says how many there are. |
| No token is a sink (3) | No, and large encoders have sinks (reported, arXiv 2506.08010). |
| *Given* is flat after the softmax; retention 1.0 changes nothing ([2](02_from_scratch.ipynb), 3) | No: identities. |
| What a token costs ([Anatomy](anatomy.ipynb), [10](10_efficiency.ipynb)) | No: cost does not depend on weights. |
| One method is ahead of another | Not directly, but it stands on everything above. |

## Three trainings

The recipe was followed three times, from three seeds. The weights of all three are in `data/`; `fopru.load("pocket")` takes the first. Every question of the benchmark was asked of each.''',
'm40':'''def pairs(scene):
    truth = scene if isinstance(scene, dict) else scene.truth()
    for line in truth.get("lines", ()):
        yield "item, price", line["item"], line["price"]
    for bar in truth.get("bars", ()):
        yield "bar, value", bar["color"], bar["value"]
    for thing in truth.get("objects", ()):
        yield "colour, shape", thing["color"], thing["shape"]
    for sign in truth.get("signs", ()):
        yield "digits of a sign", *sign["text"][:2]
        yield "digits of a sign", *sign["text"][1:]''',
'm40w':'''asked_of = ("test", "combinations")
wanted = {
    (split, *pair)
    for split in asked_of
    for e in fopru.pocket.benchmark(split)
    for pair in pairs(e.scene)
}
seen, stage = set(), recipe.stages[-1]
start = len(recipe.schedule) - stage.steps
for i in range(6000):  # the first pictures of the last stage
    step, place = start + i // stage.batch, i % stage.batch
    seed = scenes.TRAINING, recipe.seed, step, place
    few = np.random.default_rng((*seed, 1)).random() < stage.few
    seen.update(pairs(scenes.scene(seed, few=few)))
columns = ["combination", "split", "trained on"]
combined = [(kind, part, (kind, *pair) in seen) for part, kind, *pair in wanted]
combined = pd.DataFrame(combined, columns=columns)
counts = combined.pivot_table(
    "trained on", "combination", "split", ["size", "sum"], sort=False
)
counts.columns = [
    f"in {part}" if what == "size" else f"of these trained on ({part})"
    for what, part in counts.columns
]
counts = counts.reset_index().convert_dtypes()
counts.style.hide().format(na_rep="").set_caption(
    "Table M.10. Combinations in two splits of PocketBench, and how many of "
    "them 6,000 training pictures had shown."
)''',
'm39':'''## What is held out

Training and test are drawn by the same program from other random numbers. No test picture was seen in training. The split `test` shows familiar combinations; the split `combinations` shows only such as training refuses: pairs of colour and shape, neighbouring digits, items with prices (Table M.10).''',
'm42':'''A small part of training shows nearly all combinations of `test`, and none of the others. What the model makes of new combinations is in [chapter 8](08_accuracy_against_retention.ipynb).''',
'm41':'''plain = combined[combined.split == "test"]
assert (~plain["trained on"]).mean() < 0.05
kinds = ["colour, shape", "digits of a sign", "item, price"]
held = combined[combined.split == "combinations"]
assert not held[held.combination.isin(kinds)]["trained on"].any()''',
'm42a':'''## What such a model can show, and what it cannot

It can show *identities*, *errors* of a metric, a control or code, and that something *can happen*.

It cannot rank methods for your model. Beside the labels, it differs from a large one in this: flat backgrounds and no sinks, so that the tokens that stand out *are* the things; a decoder of eight layers; one grid and one length of prompt; a small vocabulary, and short answers. Three trainings of one recipe say how much hangs on the seed, and nothing about other recipes.

## What would change my mind

- A training without any dense labels, in which attention finds the evidence all the same. Then that finding needs no teaching of ours. ([Chapter 12](12_real_eye.ipynb) asks a tower that we taught nothing.)

## Exercises

1. Which words do the tokens say that FoPru keeps of a picture, at a tenth? Which do the tokens of `uniform` say?
2. On which word is the tower most often wrong? Count over `read_out`, slot by slot.
3. On *documents*, compare an interval that draws pictures with one that draws questions.''',
'm44':'''found = []
for seed in range(50):
    scene = scenes.scene((scenes.SAMPLES, 7, seed))
    labels = targets.patch_labels(scene, processor.patch_size, recipe.slots)
    logits = read_out(scene.image)
    for slot, label in zip(recipe.slots, labels, strict=True):
        named = targets.SLOTS[slot]
        ids = words.convert_tokens_to_ids([*named])
        best = logits[:, ids].argmax(1).numpy()
        for patch in np.flatnonzero(label != targets.IGNORE):
            right = best[patch] == label[patch]
            found.append([slot, named[label[patch]], right])
found = pd.DataFrame(found, columns=["slot", "word", "right"])
print(found.groupby("slot").right.agg(["mean", "size"]).round(3))
print(found.groupby(["slot", "word"]).right.mean().nsmallest(5).round(2))''',
})
swap(p,[('    "darkened, with the words of the dense labels on each patch. Top: things "\n    "and a sign, a diagram, a chart; below: the first line of a receipt. A "\n','    "darkened, with the words of the dense labels on each patch. Top: things "\n    "and a sign, a diagram, a chart; below: the first line of a receipt. A "\n')])
