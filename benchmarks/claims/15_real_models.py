from prose import Rows, table

PAGE = "notebooks/15_real_models.ipynb"
ONE = Rows(table("efficiency/h200")).where(model="llava-1.5-7b", batch=1, method="full")
VISION = ONE.where(stage="vision").rows

CLAIMS = [
    ("an H200 reads {} tokens", lambda: VISION.tokens.item()),
    (
        "beside a tower that takes {} ms",
        lambda: 1000 * VISION.seconds.item(),
    ),
]

ASIDE = [
    "VisionZip at 128 of 576 tokens",  # reported
    "by less than one point at 192, 128 and 64 tokens",  # reported
    "a prefill of 144 tokens at batch 1",
]
