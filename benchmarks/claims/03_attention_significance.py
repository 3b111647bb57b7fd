"""Numbers of chapter 3: those of its table of answers; its own cells assert the others."""

from prose import bench, gap

LOGITS = "fopru, scores=logits"
RECEIVED = "fopru, axis=received, scores=logits"


def cost(method, column):
    return -gap(bench(method, 0.25), bench("fopru", 0.25), column)


PAGE = "notebooks/03_attention_significance.ipynb"
CLAIMS = []
ASIDE = []
