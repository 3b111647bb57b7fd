PAGE = "notebooks/02_from_scratch.ipynb"

CLAIMS = []

ASIDE = [
    "29 % of 100 is 29",
    "rank keeps 25 of 256 tokens, and row keeps one row, 16 tokens",
    "The language model must now read 64 visual tokens where it expected 256",
    "How many of the tokens kept at 25 %",
]
