"""Write your own method: all of this page is measured while it is built."""

PAGE = "notebooks/16_your_own_method.ipynb"

CLAIMS = []

ASIDE = [
    "is 1.9 points above FoPru in either reading",  # asserted on the page
    "found that mosaic gained 28 points",  # of an earlier edition
]
