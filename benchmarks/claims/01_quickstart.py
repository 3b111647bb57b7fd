"""Numbers of chapter 1: its own cells measure and assert them."""

PAGE = "notebooks/01_quickstart.ipynb"
CLAIMS = []
ASIDE = [
    "128, 64 or 16",
    "it keeps 16 tokens",
    "With 16 tokens",
    "from all tokens to eight",
    "Down to 32 tokens",
    "From 12 tokens on",
    # asserted by the page
    "With 64 tokens FoPru knows the number on 98 of the 100 signs and says it on 87",
    "with 16 tokens they know it on 15 and on 21 signs",
    "with 64 tokens it knows 69 of the 100 counts, and with all tokens 93",
    "65 with 16 tokens, while random tokens fall to 34",
    "Row is as good as rank with 64 tokens",
    "FoPru with 16 tokens",
    "it is 31 points ahead",
    "On counting with 64 and 32 tokens",
    "95.0 and 96.4 %",  # reported
]
