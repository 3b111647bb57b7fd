import pandas as pd
from prose import ROOT

PAGE = "notebooks/15_real_models.ipynb"
GPU = pd.read_parquet(ROOT / "data" / "results" / "efficiency" / "h200.parquet")
PLAIN = GPU[(GPU.model == "llava-1.5-7b") & (GPU.batch == 1) & (GPU.method == "full")]

CLAIMS = [
    ("an H200 reads {} tokens", lambda: PLAIN.tokens.iloc[0]),
    (
        "beside a tower that takes {} ms",
        lambda: 1000 * PLAIN[PLAIN.stage == "vision"].seconds.item(),
    ),
]

ASIDE = [
    "VisionZip at 128 of 576 tokens",  # reported
    "by less than one point at 192, 128 and 64 tokens",  # reported
    "a prefill of 144 tokens at batch 1",
]
