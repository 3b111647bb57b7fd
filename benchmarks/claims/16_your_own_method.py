"""Write your own method: all of this page is measured while it is built."""

PAGE = "notebooks/16_your_own_method.ipynb"

CLAIMS = []

ASIDE = [
    (
        "mosaic is 4 points above FoPru in what is known, and 28 points in what is said"
    ),  # asserted on the page
]
