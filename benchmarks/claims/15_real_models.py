PAGE = "notebooks/15_real_models.ipynb"

CLAIMS = []

ASIDE = [
    "VisionZip at 128 of 576 tokens",  # reported
    "by less than one point at 192, 128 and 64 tokens",  # reported
    "the whole 95 % interval lies in the range",
    "a prefill of 144 tokens at batch 1",
]
