"""Chapter 7: few significant tokens lack the end of the answer, not its digits."""

from prose import bench, gap

PAGE = "notebooks/07_redundancy.ipynb"


CLAIMS = [
    (
        "With FoPru's, by {} points.",
        lambda: gap(bench("fopru", 0.05), bench("random", 0.05)),
    ),
    (
        "Yet with random tokens the model knows {} points less.",
        lambda: gap(bench("fopru", 0.05), bench("random", 0.05)),
    ),
]
ASIDE = [
    "of 256 tokens in 128 dimensions",
    "From 32 tokens or fewer",  # asserted by cells, as the next
    "13 points and 2, where deleting both costs 63 and 71",
    "64 of the most significant tokens",
]
