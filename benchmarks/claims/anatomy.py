PAGE = "notebooks/anatomy.ipynb"

CLAIMS = []

ASIDE = [
    "The formulas agree with the counter to a thousandth",  # asserted on the page
    "Pictures of 2,880 tokens (LLaVA-NeXT)",  # reported
]
