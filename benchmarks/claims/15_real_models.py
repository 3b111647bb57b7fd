PAGE = "notebooks/15_real_models.ipynb"

CLAIMS = []

ASIDE = [
    "So a quarter is 144 tokens in one model",  # asserted on the page
    "VisionZip at 128 of 576 tokens",  # reported
    "by less than one point at 192, 128 and 64 tokens",  # reported
    "57.8 to 30.7 ms at 128 tokens",  # reported
    "the whole 95 % interval lies in the range",
    "DivPrune's lead over FoPru on *reading* at 10 %",  # asserted on the page
    "with 25 tokens, is *malformed*",  # asserted on the page
    "a prefill of 144 tokens at batch 1",
]
