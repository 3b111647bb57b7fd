"""Numbers of chapter 1: its own cells measure and assert them."""

PAGE = "notebooks/01_quickstart.ipynb"
CLAIMS = []
ASIDE = [
    "With 16 of the 256 tokens, does any of the three",
    "the two answers with 16 tokens",
    "over random tokens larger, with 64 tokens",
    "From 25 tokens on it says",
    "come with 32 and with 16 tokens",  # asserted by the page
    "How many of 100 tokens are 29 %?",
    "95.0 and 96.4 %",  # reported
]
