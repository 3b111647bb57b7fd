from prose import bench

PAGE = "notebooks/09_choosing.ipynb"
CLAIMS = [
    (
        "chosen and measured on the same {} questions",
        lambda: len(bench("full", task="reading").rows),
    ),
]
ASIDE = [  # asserted by cells of the page, or reported
    "at most three points below",
    "on LLaVA-1.5-7B at 64 tokens",
    "renumbered ids keep 92.2 % of the full model's average, original ids alone 90.6 %, a "
    "logarithmic weight alone 91.0 %, and merging, weight and original ids together 96.5 % "
    "(reported",
]
