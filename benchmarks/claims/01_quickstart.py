"""Numbers of chapter 1: its own cells measure and assert them."""

PAGE = "notebooks/01_quickstart.ipynb"
CLAIMS = []
ASIDE = [
    "With 16 of the 256 tokens, which of the three",
    "the two answers with 16 tokens",
    "over random tokens larger, with 16 tokens",
    "With 16 tokens it is far behind",
    "FoPru with 16 tokens",
    "How many of 100 tokens are 29 %?",
    "it is 31 points ahead",  # asserted by the page
    "95.0 and 96.4 %",  # reported
]
