PAGE = "notebooks/02_from_scratch.ipynb"

CLAIMS = []

ASIDE = [
    "The language model must now read 64 visual tokens where it expected 256",  # a budget
    "How many of the tokens kept at 25 %",
]
